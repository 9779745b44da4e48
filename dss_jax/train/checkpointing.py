"""Orbax checkpoints: asynchronous and atomic; the newest and the best are kept."""

import contextlib
import glob
import logging
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
  AnyPreservationPolicy,
  BestN,
  LatestN,
)

from dss_jax.data.texts import is_unicode
from dss_jax.errors import UserError
from dss_jax.storage.durability import durable, is_heard
from dss_jax.storage.files import reason
from dss_jax.train.step import TrainState

# Orbax logs every step of its work, and with a traceback what it also raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)

# The fields of a TrainState that few runs have; each is an item of a checkpoint unless empty.
BESIDE = ("projections", "average")


def has_checkpoint(directory: pathlib.Path) -> bool:
  """Returns whether the folder has at least one complete checkpoint; others' files do not count."""
  return any(
    path.name.isascii() and path.name.isdecimal() and path.is_dir() for path in directory.glob("*")
  )


def check_name(directory: pathlib.Path) -> None:
  """Raises UserError for a path that is no text, which Orbax and TensorStore cannot take."""
  if not is_unicode(str(directory)):
    raise UserError(
      f"{directory}: the name is not text in this terminal's encoding; rename the folder, or set"
      " LC_ALL=C.UTF-8"
    )


def rank_of(metrics: Mapping[str, float]) -> tuple[float, float, float]:
  """Returns the sort key of a checkpoint: the last that was the best of its time is largest.

  Which is best depends on the run's rule (train/selection.py), so the loop says it: `best_at` is
  the step where the checkpoint was, else -1. Checkpoints of older programs lack it; their rank is
  the accuracy, then the smaller loss.
  """
  return metrics.get("best_at", 0.0), metrics["accuracy"], -metrics["loss"]


class Checkpoints:
  """The checkpoints of one run, under MODEL_DIR/checkpoints.

  Each has the weights (`params`), the optimizer's state (`optimizer`), the loop's state
  (`progress`) and, where the run has them, what is beside the student's weights (BESIDE): all
  that resuming needs.
  """

  def __init__(self, directory: pathlib.Path, *, keep_best: bool, read_only: bool = False):
    """Opens the folder, and creates it unless read_only.

    Raises UserError if the list of its checkpoints cannot be read.
    """
    check_name(directory)
    if directory.exists() and not directory.is_dir():
      raise UserError(f"{directory}: is a file where the checkpoints should be; remove it")
    # Orbax's max_to_keep drops the newest checkpoint when it is not the best.
    policies: list[Any] = [LatestN(1)]
    if keep_best:
      best = BestN(get_metric_fn=rank_of, n=1, keep_checkpoints_without_metrics=False)
      policies.append(best)
    self._directory = directory
    self._has_failed = False
    options = ocp.CheckpointManagerOptions(
      preservation_policy=AnyPreservationPolicy(policies),
      best_fn=rank_of if keep_best else None,
      best_mode="max",
      enable_async_checkpointing=not read_only,
      # Removes checkpoints that a killed run left incomplete.
      cleanup_tmp_directories=not read_only,
      read_only=read_only,
    )
    if not read_only:
      directory.mkdir(parents=True, exist_ok=True)
    self._stack = contextlib.ExitStack()
    if not read_only:
      # A save goes on in threads, so its late tracebacks may come at any time.
      self._stack.enter_context(_suppressed_late_tracebacks())
    place = self._stack.enter_context(_without_wildcards(directory))
    with self._reading(directory):
      self._manager = ocp.CheckpointManager(place, options=options)

  def save(
    self,
    state: TrainState,
    step: int,
    progress: Mapping[str, Any],
    metrics: Mapping[str, float] | None,
  ) -> None:
    """Starts saving; returns when the state is copied from the devices.

    Where somebody listens (storage/durability.py), returns when the checkpoint is whole.

    Args:
      metrics: what rank_of ranks the checkpoint by; None if it was not evaluated.

    Raises UserError if this or the last checkpoint cannot be written; so does wait.
    """
    with self._saving():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(state.params),
          optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
          progress=ocp.args.JsonSave(dict(progress)),
          **{name: ocp.args.StandardSave(tree) for name, tree in _beside(state).items()},
        ),
        metrics=dict(metrics) if metrics is not None else None,
        force=True,
      )
      if is_heard():
        # Orbax itself says so before the checkpoint has its name.
        self._manager.wait_until_finished()
        durable()

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Returns the step of the best evaluation, or the newest step if none was evaluated."""
    with self._reading(self._directory):
      best = self._manager.best_step()
    return self._manager.latest_step() if best is None else best

  def restore(self, step: int, shape: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Restores the state and the progress of a step, with the shardings of `shape`.

    Raises UserError if the checkpoint cannot be read or has another shape.
    """
    with self._reading(self._directory / str(step)):
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardRestore(shape.params),
          optimizer=ocp.args.StandardRestore({"step": shape.step, "opt_state": shape.opt_state}),
          progress=ocp.args.JsonRestore(),
          **{name: ocp.args.StandardRestore(tree) for name, tree in _beside(shape).items()},
        ),
      )
    optimizer = restored["optimizer"]
    state = TrainState(
      step=optimizer["step"],
      params=restored["params"],
      opt_state=optimizer["opt_state"],
      **{name: restored[name] for name in _beside(shape)},
    )
    return state, restored["progress"]

  def restore_params(self, step: int, shape: Any) -> Any:
    """Restores only the weights of a step; raises as restore does."""
    with self._reading(self._directory / str(step)):
      restored = self._manager.restore(
        step, args=ocp.args.Composite(params=ocp.args.StandardRestore(shape))
      )
    return restored["params"]

  def wait(self) -> None:
    """Waits until everything saved is on disk."""
    with self._saving():
      self._manager.wait_until_finished()

  def close(self) -> None:
    if self._has_failed:
      # The same failure would come again.
      with contextlib.suppress(Exception):
        self._manager.close()
      # The tracebacks stay suppressed; the link goes when the program ends.
      self._stack.pop_all()
      return
    self._manager.close()
    self._stack.close()

  @contextlib.contextmanager
  def _saving(self) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise for a disk that is full into a UserError."""
    try:
      yield
    except Exception as error:
      self._has_failed = True
      raise UserError(
        f"{self._directory}: a checkpoint cannot be written ({reason(error)}); make room there,"
        " and run the same command again to go on from the newest whole one"
      ) from error

  @contextlib.contextmanager
  def _reading(self, place: pathlib.Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise for damaged files into a UserError."""
    with _suppressed_late_tracebacks():
      try:
        yield
      except Exception as error:
        raise UserError(
          f"{place}: cannot be restored ({reason(error)}); put a copy of it in its place, or "
          "remove it to go on from what is left"
        ) from error


def _beside(state: TrainState) -> dict[str, Any]:
  return {name: tree for name in BESIDE if (tree := getattr(state, name))}


@contextlib.contextmanager
def _without_wildcards(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives the folder's path, or a link to it if a glob would take its name for a pattern.

  Orbax finds what it has written by globbing under the whole path: under `runs [final]` it finds
  nothing, and would commit checkpoints without their index.
  """
  path = directory.resolve()
  if glob.escape(str(path)) == str(path):
    yield path
    return
  with tempfile.TemporaryDirectory(prefix="dss_checkpoints_") as folder:
    link = pathlib.Path(folder) / directory.name
    link.symlink_to(path, target_is_directory=True)
    yield link


@contextlib.contextmanager
def _suppressed_late_tracebacks() -> Iterator[None]:
  """Suppresses tracebacks of concurrent reads and writes that end after another one has failed.

  They may end at any time before the program does, when their event loop is closed, so after a
  failure the suppression stays.
  """
  hooks = sys.unraisablehook, sys.excepthook

  def unraisable(raised):
    if not _is_late(raised.exc_type, raised.exc_value):
      hooks[0](raised)

  def uncaught(kind, error, trace):
    if not _is_late(kind, error):
      hooks[1](kind, error, trace)

  sys.unraisablehook, sys.excepthook = unraisable, uncaught
  try:
    yield
  except BaseException:
    # asyncio logs an error for each of them, whose exception nobody retrieved.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    raise
  sys.unraisablehook, sys.excepthook = hooks


def _is_late(kind: type[BaseException], error: BaseException | None) -> bool:
  is_closed = kind is RuntimeError and str(error) == "Event loop is closed"
  return is_closed or (kind is ImportError and str(error).startswith("sys.meta_path is None"))
