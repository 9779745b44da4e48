"""Sweeps: a grid of runs, one MODEL_DIR each, and the table of their results."""

import hashlib
import itertools
import json
import pathlib
import shutil
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorboardX
from rich.console import Console
from rich.table import Table
from tensorboardX.summary import hparams

from dss_jax.config.gin_loader import load_config
from dss_jax.config.schema import RunConfig, SweepConfig
from dss_jax.errors import TrainingDiverged, UserError
from dss_jax.pipelines import distill
from dss_jax.progress import say
from dss_jax.storage.atomic import write_text
from dss_jax.student.model_dir import check_directory
from dss_jax.terminal import printable

RESULTS = "sweep.json"
_NAME_BYTES = 200


def load_grid(file: str) -> list[dict[str, Any]]:
  """Returns the points of a sweep's gin file; a point maps every name to a value.

  A name is a macro or binding of a run, or STUDENT, whose values are files of
  gin_configs/models.
  """
  grid = load_config(SweepConfig, [file]).grid
  empty = [name for name, values in grid.items() if not values]
  if empty or not grid:
    raise UserError(
      f"{file}: SweepConfig.grid has no values{f' for {empty[0]}' if empty else ''}; "
      "give a list of at least one value for each name"
    )
  for name, values in grid.items():
    if name in ("MODEL_DIR", "RunConfig.model_dir"):
      raise UserError(f"{file}: {name} is set by --model-dir; remove it from the grid")
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
      raise UserError(f"{file}: {name} has the value {twice[0]!r} twice; keep one of them")
  return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def run(
  points: Sequence[Mapping[str, Any]],
  directory: str,
  config_of: Callable[[Mapping[str, Any], str], RunConfig],
) -> list[dict[str, Any]]:
  """Trains every point that is not trained yet; returns one result a point, in order.

  When started again after a stop, finished points are skipped and the others resumed. A point
  that diverges is recorded, and the sweep continues. Every configuration and folder is checked
  before the first run begins.

  Args:
    config_of: returns the configuration of a point in a MODEL_DIR.
  """
  folder = pathlib.Path(directory)
  names = run_names(points)
  configs = [
    config_of(point, str(folder / name)) for point, name in zip(points, names, strict=True)
  ]
  for config in configs:
    check_directory(config)
  results = []
  for number, (point, name, config) in enumerate(zip(points, names, configs, strict=True), 1):
    say(f"sweep {number}/{len(points)}: {name}")
    result = {"run": name, "values": dict(point), **_result(config)}
    results.append(result)
    write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")
    _write_hparams(folder / "tensorboard" / name, result)
  return results


def _result(config: RunConfig) -> dict[str, Any]:
  try:
    card = distill.run(config)
  except TrainingDiverged as error:
    say(f"warning: {error}")
    return {"failed": str(error), "steps": None, "best_step": None, "metrics": {}}
  return {key: card[key] for key in ("steps", "best_step", "metrics")}


def _write_hparams(folder: pathlib.Path, result: Mapping[str, Any]) -> None:
  """Writes a point and its metrics for TensorBoard's hparams page; replaces earlier files."""
  shutil.rmtree(folder, ignore_errors=True)
  if not result["metrics"]:
    return
  values = {
    name: value if isinstance(value, (bool, int, float, str)) else repr(value)
    for name, value in result["values"].items()
  }
  with tensorboardX.SummaryWriter(str(folder)) as writer:
    for summary in hparams(values, result["metrics"]):
      writer.file_writer.add_summary(summary)
    for name, value in result["metrics"].items():
      writer.add_scalar(name, value, result["best_step"])


def print_table(results: Sequence[Mapping[str, Any]]) -> None:
  """Prints a line a run, with the best one in bold."""
  names = list(results[0]["values"])
  metrics = {
    "eval_total_loss": "loss",
    "label/eval_loss": "label loss",
    "label/eval_accuracy": "label accuracy",
    "label/eval_sequence_accuracy": "labels right",
  }
  table = Table(*names, "steps", "best step", *metrics.values())
  best = best_run(results)
  for number, result in enumerate(results):
    failed = "failed" in result
    cells = [printable(str(result["values"][name])) for name in names]
    cells += ["diverged" if failed else str(result["steps"]), str(result["best_step"] or "-")]
    cells += [
      f"{result['metrics'][name]:.4f}" if name in result["metrics"] else "-" for name in metrics
    ]
    table.add_row(*cells, style="bold" if number == best else None)
  Console().print(table)


def best_run(results: Sequence[Mapping[str, Any]]) -> int | None:
  """Returns the number of the run with the most labels wholly right, then the lowest label loss.

  Of equal ones the first; None if no run has been evaluated. Checkpoints are selected in this order
  of scores, too (train/selection.py), but there what lies within the noise counts as equal.
  """
  scores = {
    number: (metrics["label/eval_sequence_accuracy"], -metrics["label/eval_loss"])
    for number, result in enumerate(results)
    if "label/eval_sequence_accuracy" in (metrics := result["metrics"])
  }
  return max(scores, key=scores.__getitem__, default=None)


def run_names(points: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns a folder name for each point: its values, without characters reserved in paths.

  Where a file system would take two names for one (equal but for such characters, case or the
  end of a long name), the later one gets a digest of its values.
  """
  names: list[str] = []
  taken = set()
  for point in points:
    text = ",".join(f"{name}={value}" for name, value in point.items())
    plain = "".join(c if c.isalnum() or c in "=,._-" else "_" for c in text)
    name = plain.encode("utf-8")[:_NAME_BYTES].decode("utf-8", "ignore")
    if _as_file_systems_compare(name) in taken:
      name += f"-{hashlib.sha256(repr(dict(point)).encode('utf-8')).hexdigest()[:8]}"
    taken.add(_as_file_systems_compare(name))
    names.append(name)
  return names


def _as_file_systems_compare(name: str) -> str:
  return unicodedata.normalize("NFKC", name).casefold()
