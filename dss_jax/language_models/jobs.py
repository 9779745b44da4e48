"""Jobs: what runs in the background, one after the other, and can be waited for."""

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from dss_jax.errors import Preempted
from dss_jax.progress import say

Result = TypeVar("Result")
Model = TypeVar("Model")

# One thread: two jobs at once would share the devices and their memory.
_thread = concurrent.futures.ThreadPoolExecutor(1, "dss_job")


class _Job(Generic[Result]):
  """A job that runs, or waits for the jobs before it.

  Python ends only when its jobs have; what fails while nobody waits is printed.
  """

  _STATES = "PIPELINE_STATE"

  def __init__(self, name: str, work: Callable[[], Result]):
    self.display_name = name
    self._future = _thread.submit(self._run, work)

  def _run(self, work: Callable[[], Result]) -> Result:
    try:
      return work()
    except concurrent.futures.CancelledError as error:
      say(str(error))
      raise
    except BaseException as error:
      say(f"{self.display_name} failed: {error}")
      raise

  @property
  def state(self) -> str:
    """The job's state, as the hosted service names it."""
    return f"{self._STATES}_{self._state()}"

  def _state(self) -> str:
    if self._future.running():
      return "RUNNING"
    if not self._future.done():
      return "QUEUED"
    try:
      error = self._future.exception()
    except concurrent.futures.CancelledError as cancelled:
      error = cancelled
    if isinstance(error, concurrent.futures.CancelledError):
      return "CANCELLED"
    return "SUCCEEDED" if error is None else "FAILED"

  def done(self) -> bool:
    return self._future.done()

  def wait(self, timeout: float | None = None) -> None:
    """Waits until the job ends; raises what ended it, CancelledError for `cancel`, or TimeoutError.

    CancelledError is that of concurrent.futures.
    """
    self._future.result(timeout)


class TuningJob(_Job[str], Generic[Model]):
  """A job that trains and registers a student.

  Attributes:
    model_dir: the run's folder; the same call goes on from what is there.
  """

  def __init__(
    self,
    name: str,
    model_dir: str,
    work: Callable[[], str],
    open_model: Callable[[str], Model],
  ):
    """Starts `work`, which returns NAME@VERSION; `open_model` opens it."""
    self._stop = threading.Event()
    self.model_dir = model_dir
    self._open_model = open_model
    self._model: Model | None = None
    super().__init__(name, lambda: self._train(work))

  def _train(self, work: Callable[[], str]) -> str:
    # Imports JAX.
    from dss_jax.parallel.preemption import stopped_by

    try:
      with stopped_by(self._stop):
        return work()
    except Preempted as error:
      raise concurrent.futures.CancelledError(
        f"{self.display_name} was cancelled after step {error.step}, which is saved; the same call"
        " goes on from there"
      ) from None

  def _state(self) -> str:
    state = super()._state()
    return "CANCELLING" if state == "RUNNING" and self._stop.is_set() else state

  def cancel(self) -> None:
    """Stops the job after the current step of training, with its checkpoint; returns at once.

    The same call that started it goes on from there. A job that waits does not begin; one that is
    asking its teacher stops after its first step; one that has ended stays as it is.
    """
    self._stop.set()
    self._future.cancel()

  def get_tuned_model(self) -> Model:
    """Waits until the job is complete, and returns the model; raises what ended the job."""
    if self._model is None:
      self._model = self._open_model(self._future.result())
    return self._model

  def result(self) -> Model:
    return self.get_tuned_model()


class BatchPredictionJob(_Job[dict[str, Any]]):
  """A job that answers the prompts of files.

  Attributes:
    output: the file of the answers.
  """

  _STATES = "JOB_STATE"

  def __init__(self, name: str, output: str, work: Callable[[], dict[str, Any]]):
    super().__init__(name, work)
    self.output = output

  def result(self) -> dict[str, Any]:
    """Waits until the job is complete; returns the output and the number of rows."""
    return self._future.result()
