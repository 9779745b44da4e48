"""Jobs: what runs in the background, one after the other, and can be waited for."""

import concurrent.futures
from collections.abc import Callable
from typing import Any, Generic, TypeVar

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
    except BaseException as error:
      say(f"{self.display_name} failed: {error}")
      raise

  @property
  def state(self) -> str:
    """The job's state, as the hosted service names it."""
    if self._future.running():
      state = "RUNNING"
    elif not self._future.done():
      state = "QUEUED"
    else:
      state = "SUCCEEDED" if self._future.exception() is None else "FAILED"
    return f"{self._STATES}_{state}"

  def done(self) -> bool:
    return self._future.done()

  def wait(self, timeout: float | None = None) -> None:
    """Waits until the job ends; raises what ended it, or TimeoutError."""
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
    super().__init__(name, work)
    self.model_dir = model_dir
    self._open_model = open_model
    self._model: Model | None = None

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
