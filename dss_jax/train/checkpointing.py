"""Orbax checkpoints: asynchronous and atomic; the newest and the best are kept."""

import contextlib
import logging
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
  AnyPreservationPolicy,
  BestN,
  LatestN,
)

from dss_jax.errors import UserError
from dss_jax.storage.files import reason
from dss_jax.train.step import TrainState

# Orbax tells every step of its work at levels below this.
logging.getLogger("absl").setLevel(logging.ERROR)


def has_checkpoint(directory: pathlib.Path) -> bool:
  """Whether at least one checkpoint was saved there to the end."""
  return any(path.name.isdecimal() for path in directory.glob("*"))


def rank_of(metrics: Mapping[str, float]) -> tuple[float, float]:
  """Better is larger: the label's accuracy, and of two alike, the smaller loss."""
  return metrics["accuracy"], -metrics["loss"]


class Checkpoints:
  """The checkpoints of one run, under MODEL_DIR/checkpoints.

  Each holds the weights (`params`), the optimizer's state (`optimizer`) and what the loop
  remembers between steps (`progress`), so that resuming needs nothing else.
  """

  def __init__(self, directory: pathlib.Path, *, keep_best: bool, read_only: bool = False):
    """Opens the folder, or makes it unless it is for reading only.

    Raises UserError where the list of its checkpoints cannot be read.
    """
    if directory.exists() and not directory.is_dir():
      raise UserError(f"{directory}: is a file where the checkpoints should be; remove it")
    # Orbax's max_to_keep drops the newest checkpoint when it is not the best.
    policies: list[Any] = [LatestN(1)]
    if keep_best:
      best = BestN(get_metric_fn=rank_of, n=1, keep_checkpoints_without_metrics=False)
      policies.append(best)
    self._directory = directory
    options = ocp.CheckpointManagerOptions(
      preservation_policy=AnyPreservationPolicy(policies),
      best_fn=rank_of if keep_best else None,
      best_mode="max",
      enable_async_checkpointing=not read_only,
      # What a kill left unfinished would stay for good.
      cleanup_tmp_directories=not read_only,
      read_only=read_only,
    )
    with self._reading(directory):
      self._manager = ocp.CheckpointManager(directory.resolve(), options=options)

  def save(
    self,
    state: TrainState,
    step: int,
    progress: Mapping[str, Any],
    metrics: Mapping[str, float] | None,
  ) -> None:
    """Begins to save; returns when the state is copied off the devices.

    Args:
      metrics: `accuracy` and `loss` of the label task; None where it was not evaluated.
    """
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
        progress=ocp.args.JsonSave(dict(progress)),
      ),
      metrics=dict(metrics) if metrics is not None else None,
      force=True,
    )

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The step of the best evaluation; the newest where none was evaluated."""
    with self._reading(self._directory):
      best = self._manager.best_step()
    return self._manager.latest_step() if best is None else best

  def restore(self, step: int, shape: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state and the progress of a step, laid out as `shape` says (its shardings).

    Raises UserError where the checkpoint cannot be read or is of another shape.
    """
    with self._reading(self._directory / str(step)):
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardRestore(shape.params),
          optimizer=ocp.args.StandardRestore({"step": shape.step, "opt_state": shape.opt_state}),
          progress=ocp.args.JsonRestore(),
        ),
      )
    optimizer = restored["optimizer"]
    state = TrainState(
      step=optimizer["step"], params=restored["params"], opt_state=optimizer["opt_state"]
    )
    return state, restored["progress"]

  def restore_params(self, step: int, shape: Any) -> Any:
    """The weights of a step alone; raises as restore does."""
    with self._reading(self._directory / str(step)):
      restored = self._manager.restore(
        step, args=ocp.args.Composite(params=ocp.args.StandardRestore(shape))
      )
    return restored["params"]

  def wait(self) -> None:
    """Returns when everything saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()

  @contextlib.contextmanager
  def _reading(self, place: pathlib.Path) -> Iterator[None]:
    """Turns whatever Orbax and TensorStore raise over damaged files into one sentence."""
    with _silent_stragglers():
      try:
        yield
      except Exception as error:
        raise UserError(
          f"{place}: cannot be restored ({reason(error)}); put a copy of it in its place, or "
          "remove it to go on from what is left"
        ) from error


@contextlib.contextmanager
def _silent_stragglers() -> Iterator[None]:
  """Keeps reads that end after another one failed from printing tracebacks.

  They report to an event loop that is closed by then, at any time until the program ends, so
  what was needed once stays.
  """
  before = sys.unraisablehook

  def hook(raised):
    if not (raised.exc_type is RuntimeError and str(raised.exc_value) == "Event loop is closed"):
      before(raised)

  sys.unraisablehook = hook
  try:
    yield
  except BaseException:
    # Of each such read, asyncio tells that nobody asked for its exception.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    raise
  sys.unraisablehook = before
