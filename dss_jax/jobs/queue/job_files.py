"""The log and the metrics of a job, from the files that its process writes."""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

from dss_jax.jobs.service import JobService
from dss_jax.jobs.store import Job
from dss_jax.terminal import printable

METRICS_FILE = "model/metrics.jsonl"
_CHUNK_BYTES = 2**16
_TAIL_BYTES = 2**16
_MOST_POINTS = 1000


def new_lines(
  service: JobService, job: Job, name: str, place: int
) -> tuple[int, Iterator[tuple[str, int]]]:
  """Returns the whole lines after a place in a job's file, each with the place where it ends.

  Also returns the place where they begin: at most the end of the file, since a run that resumes
  cuts the metrics after its checkpoint off.

  Raises UserError for an encrypted job whose key is not there.
  """
  try:
    file = service.open_file(job, name)
  except FileNotFoundError:
    return 0, iter(())
  place = min(place, file.seek(0, os.SEEK_END))
  return place, _lines(file, place)


def tail(service: JobService, job: Job, name: str) -> tuple[list[str], int, bool]:
  """Returns the last lines of a job's file, the place after them, and whether there are earlier."""
  size = 0
  with contextlib.suppress(FileNotFoundError), service.open_file(job, name) as file:
    size = file.seek(0, os.SEEK_END)
  place, found = new_lines(service, job, name, max(0, size - _TAIL_BYTES))
  is_cut, lines = place > 0, []
  for line, end in found:
    lines.append(line)
    place = end
  # The first one may be the rest of a line.
  return lines[1:] if is_cut else lines, place, is_cut


def curves(
  service: JobService, job: Job, names: Sequence[str]
) -> tuple[dict[str, list[list[float]]], int]:
  """Returns the points of metrics as [[steps], [values]], and the place after their last line.

  Of long runs, every so many steps are left out; the last one never is.
  """
  place, found = new_lines(service, job, METRICS_FILE, 0)
  lines = []
  for line, end in found:
    lines.append(line)
    place = end
  points = _points(lines, names)
  return {name: [_thinned(axis) for axis in axes] for name, axes in points.items()}, place


def newest(service: JobService, job: Job, names: Sequence[str]) -> dict[str, tuple[int, float]]:
  """Returns the last value of each metric, and its step; without those that are long ago."""
  points = _points(tail(service, job, METRICS_FILE)[0], names)
  return {name: (int(axes[0][-1]), axes[1][-1]) for name, axes in points.items() if axes[0]}


def _lines(file: IO[bytes], place: int) -> Iterator[tuple[str, int]]:
  with file:
    file.seek(place)
    while lines := file.readlines(_CHUNK_BYTES):
      for line in lines:
        if not line.endswith(b"\n"):
          return
        place += len(line)
        yield printable(line.decode("utf-8", "replace").rstrip("\r\n")), place


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
