"""The log and the metrics of a job, from the files that its process writes."""

import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dss_jax.jobs.runner import LOG
from dss_jax.jobs.service import JobService
from dss_jax.jobs.store import Job
from dss_jax.terminal import printable

METRICS = "model/metrics.jsonl"
_CHUNK_BYTES = 2**16
_TAIL_BYTES = 2**16
_MOST_POINTS = 1000


def log_path(service: JobService, job: Job) -> pathlib.Path:
  return service.folder(job) / LOG


def metrics_path(service: JobService, job: Job) -> pathlib.Path:
  return service.folder(job) / METRICS


def new_lines(path: pathlib.Path, place: int) -> Iterator[tuple[str, int]]:
  """Yields the whole lines after a place in a file, each with the place where it ends."""
  try:
    with path.open("rb") as file:
      file.seek(place)
      while lines := file.readlines(_CHUNK_BYTES):
        for line in lines:
          if not line.endswith(b"\n"):
            return
          place += len(line)
          yield printable(line.decode("utf-8", "replace").rstrip("\r\n")), place
  except FileNotFoundError:
    return


def log_tail(service: JobService, job: Job) -> tuple[list[str], int, bool]:
  """Returns the last lines of a job's log, the place after them, and whether there are earlier."""
  path = log_path(service, job)
  size = path.stat().st_size if path.exists() else 0
  begin = max(0, size - _TAIL_BYTES)
  lines, place = [], begin
  for line, end in new_lines(path, begin):
    lines.append(line)
    place = end
  # The first one may be the rest of a line.
  return lines[1:] if begin else lines, place, begin > 0


def metrics_tail(service: JobService, job: Job) -> list[str]:
  """Returns the last lines of a job's metrics."""
  path = metrics_path(service, job)
  size = path.stat().st_size if path.exists() else 0
  begin = max(0, size - _TAIL_BYTES)
  lines = [line for line, _ in new_lines(path, begin)]
  return lines[1:] if begin else lines


def curves(
  service: JobService, job: Job, names: Sequence[str]
) -> tuple[dict[str, list[list[float]]], int]:
  """Returns the points of metrics as [[steps], [values]], and the place after their last line.

  Of long runs, every so many steps are left out; the last one never is.
  """
  lines, place = [], 0
  for line, end in new_lines(metrics_path(service, job), 0):
    lines.append(line)
    place = end
  points = _points(lines, names)
  return {name: [_thinned(axis) for axis in axes] for name, axes in points.items()}, place


def newest(service: JobService, job: Job, names: Sequence[str]) -> dict[str, tuple[int, float]]:
  """Returns the last value of each metric, and its step; without those that are long ago."""
  points = _points(metrics_tail(service, job), names)
  return {name: (int(axes[0][-1]), axes[1][-1]) for name, axes in points.items() if axes[0]}


def _points(lines: Iterable[str], names: Sequence[str]) -> dict[str, list[list[float]]]:
  found: dict[str, list[list[float]]] = {name: [[], []] for name in names}
  for line in lines:
    values = _values(line)
    for name in names:
      value = values.get(name)
      if isinstance(value, (int, float)) and math.isfinite(value):
        found[name][0].append(values["step"])
        found[name][1].append(value)
  return found


def _values(line: str) -> dict[str, Any]:
  try:
    values = json.loads(line)
  except ValueError:
    return {}
  return values if isinstance(values, dict) and isinstance(values.get("step"), int) else {}


def _thinned(values: list[float]) -> list[float]:
  every = math.ceil(len(values) / _MOST_POINTS) or 1
  # From the end, so that the last one stays.
  return values[::-1][::every][::-1]
