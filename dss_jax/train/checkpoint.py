"""Orbax checkpoints: asynchronous and atomic; the newest and the best are kept."""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
  AnyPreservationPolicy,
  BestN,
  LatestN,
)

from dss_jax.errors import UserError
from dss_jax.train.step import TrainState

# Orbax tells every step of its work at levels below this.
logging.getLogger("absl").setLevel(logging.ERROR)


def rank_of(metrics: Mapping[str, float]) -> tuple[float, float]:
  """Better is larger: the label's accuracy, and of two alike, the smaller loss."""
  return metrics["accuracy"], -metrics["loss"]


class Checkpoints:
  """The checkpoints of one run, under MODEL_DIR/checkpoints.

  Each holds the weights (`params`), the optimizer's state (`optimizer`) and what the loop
  remembers between steps (`progress`), so that resuming needs nothing else.
  """

  def __init__(self, directory: pathlib.Path, *, keep_best: bool):
    # Orbax's max_to_keep drops the newest checkpoint when it is not the best.
    policies: list[Any] = [LatestN(1)]
    if keep_best:
      best = BestN(get_metric_fn=rank_of, n=1, keep_checkpoints_without_metrics=False)
      policies.append(best)
    self._directory = directory
    self._manager = ocp.CheckpointManager(
      directory.resolve(),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(policies),
        best_fn=rank_of if keep_best else None,
        best_mode="max",
        enable_async_checkpointing=True,
      ),
    )

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
    best = self._manager.best_step()
    return self._manager.latest_step() if best is None else best

  def restore(self, step: int, shape: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state and the progress of a step, laid out as `shape` says (its shardings).

    Raises UserError where the checkpoint cannot be read or is of another shape.
    """
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardRestore(shape.params),
          optimizer=ocp.args.StandardRestore({"step": shape.step, "opt_state": shape.opt_state}),
          progress=ocp.args.JsonRestore(),
        ),
      )
    except Exception as error:
      raise self._unreadable(step, error) from error
    optimizer = restored["optimizer"]
    state = TrainState(
      step=optimizer["step"], params=restored["params"], opt_state=optimizer["opt_state"]
    )
    return state, restored["progress"]

  def restore_params(self, step: int, shape: Any) -> Any:
    """The weights of a step alone."""
    try:
      restored = self._manager.restore(
        step, args=ocp.args.Composite(params=ocp.args.StandardRestore(shape))
      )
    except Exception as error:
      raise self._unreadable(step, error) from error
    return restored["params"]

  def wait(self) -> None:
    """Returns when everything saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()

  def _unreadable(self, step: int, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return UserError(
      f"{self._directory / str(step)}: this checkpoint cannot be restored ({reason}); "
      "remove that folder to go on from the one before it, or choose another model directory"
    )
