"""The names of metrics, and their writer: metrics.jsonl and TensorBoard, live."""

import contextlib
import functools
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from dss_jax.losses.base import LossSum
from dss_jax.losses.objective import Objective
from dss_jax.storage.atomic import sync, write_text, writing


def named_metrics(
  objective: Objective, sums: Mapping[str, LossSum], prefix: Literal["train", "eval"]
) -> dict[str, float]:
  """Returns an objective's sums as metrics under the service's names and ours.

  `<prefix>_total_loss` is the total loss; `<prefix>_fraction_of_correct_next_step_preds` the
  share of correct next tokens over all target kinds; `<prefix>_num_predictions` the number of
  tokens predicted. Beside them `<term>/<prefix>_loss` and `<kind>/<prefix>_accuracy`, where
  there are tokens.
  """
  correct = [each for name, each in sums.items() if name.endswith("/accuracy")]
  all_correct = functools.reduce(LossSum.__add__, correct)
  named = {
    f"{prefix}_total_loss": objective.total(sums),
    f"{prefix}_fraction_of_correct_next_step_preds": all_correct.mean(),
    f"{prefix}_num_predictions": all_correct.weight,
  }
  for name, each in sums.items():
    if each.weight > 0:
      group, figure = name.split("/")
      named[f"{group}/{prefix}_{figure}"] = each.mean()
  return {name: float(np.asarray(value)) for name, value in named.items()}


def on_policy_metrics(
  objective: Objective, sums: Mapping[str, LossSum], figures: Mapping[str, float]
) -> dict[str, float]:
  """Returns the metrics of an on-policy step.

  `train_total_loss` and `train_num_predictions` as of any step. The rest stands under
  `on_policy/`, since it is not of the rows' own targets: `<term>_loss`, and the figures of the
  sampled targets.
  """
  named: dict[str, Any] = {
    "train_total_loss": objective.total(sums),
    "train_num_predictions": sum(
      each.weight for name, each in sums.items() if name.endswith("/accuracy")
    ),
  }
  for term in objective.every_term:
    loss = sums[f"{term.name}/loss"]
    if loss.weight > 0:
      named[f"on_policy/{term.name}_loss"] = loss.mean()
  named |= {f"on_policy/{name}": value for name, value in figures.items()}
  return {name: float(np.asarray(value)) for name, value in named.items()}


class MetricsWriter:
  """Writes the same numbers to MODEL_DIR/metrics.jsonl and MODEL_DIR/tensorboard.

  A line of metrics.jsonl is {"step": n, name: value, ...}. A run that resumes after step n
  removes the lines of later steps, which it will write again, and makes TensorBoard discard them.
  """

  def __init__(self, model_dir: pathlib.Path, *, resume_step: int):
    self._path = path = model_dir / "metrics.jsonl"
    _drop_after(path, resume_step)
    folder = model_dir / "tensorboard"
    with writing(path):
      self._file = path.open("a", encoding="utf-8")
      folder.mkdir(exist_ok=True)
    # tensorboardX's SummaryWriter writes in a thread, so a killed run would lose events of steps
    # before its checkpoint. The suffix makes the name unique: a second file of the same second
    # would overwrite the first.
    self._events = EventsWriter(str(folder / "events"), filename_suffix=f".{time.time_ns()}")
    # Makes TensorBoard discard earlier events of this step and later ones.
    purge = Event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START))
    self._events.write_event(purge)

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes a step's metrics; other programs can read them when this returns.

    Raises UserError if there is no room for them.
    """
    with writing(self._path):
      self._file.write(json.dumps({"step": step, **metrics}) + "\n")
      self._file.flush()
      for name, value in metrics.items():
        summary = scalar(name, value)
        self._events.write_event(Event(step=step, wall_time=time.time(), summary=summary))
      self._events.flush()

  def flush(self) -> None:
    """Syncs everything written to disk; called before a checkpoint of the same step."""
    with writing(self._path):
      sync(self._file)

  def close(self) -> None:
    # What cannot be written has been said by write.
    for stream in (self._file, self._events):
      with contextlib.suppress(OSError):
        stream.close()


class NoWriter:
  """A MetricsWriter that writes nothing, for processes other than process 0."""

  def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

  def flush(self) -> None: ...

  def close(self) -> None: ...


def _drop_after(path: pathlib.Path, step: int) -> None:
  """Removes the lines of later steps, and an incomplete last line."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      if json.loads(line)["step"] <= step:
        kept.append(line + "\n")
    except (ValueError, KeyError, TypeError):
      break
  write_text(path, "".join(kept))
