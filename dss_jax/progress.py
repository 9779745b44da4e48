"""The progress of a long job: a live bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dss_jax.terminal import printable

# Without a terminal, at most one plain line is printed in this time.
PLAIN_LINE_SECONDS = 10.0

_is_silent = False


def be_silent() -> None:
  """Turns off this process's output: of several processes of one job, only one prints."""
  global _is_silent
  _is_silent = True


class ProgressLine:
  """Prints how much of a job is done; made by `progress_line`."""

  def __init__(self, job: str, total: int, done: int, bar: Progress | None, console: Console):
    self._job = job
    self._total = total
    self._bar = bar
    self._console = console
    self._task = None if bar is None else bar.add_task(job, total=total, completed=done, note="")
    self._last_line = time.monotonic()
    self._done = done
    # The rate is measured from the first update: the time before it went into compiling.
    self._first_time: float | None = None
    self._first_done = done

  def update(self, done: int, note: str = "") -> None:
    """Shows that `done` of the total are done, with `note` beside it."""
    self._done = done
    if self._bar is not None and self._task is not None:
      self._bar.update(self._task, completed=done, note=note)
      return
    now = time.monotonic()
    if self._first_time is None:
      self._first_time, self._first_done = now, done
    if now - self._last_line >= PLAIN_LINE_SECONDS or done == self._total:
      self._last_line = now
      self._print_plain(note, now)

  def say(self, line: str) -> None:
    """Prints a line that stays above the bar."""
    self._console.print(printable(line), highlight=False, markup=False, soft_wrap=True)

  def _print_plain(self, note: str, now: float) -> None:
    assert self._first_time is not None
    rate = (self._done - self._first_done) / max(now - self._first_time, 1e-9)
    left = f"  {duration((self._total - self._done) / rate)} left" if rate else ""
    self.say(f"{self._job} {self._done}/{self._total}  {note}{left}")


@contextlib.contextmanager
def progress_line(job: str, total: int, done: int = 0) -> Iterator[ProgressLine]:
  """Shows a job's progress on standard error, apart from the command's output."""
  console = Console(stderr=True, quiet=_is_silent)
  if not console.is_terminal:
    yield ProgressLine(job, total, done, None, console)
    return
  columns = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("{task.fields[note]}"),
    TimeRemainingColumn(elapsed_when_finished=True),
  )
  with Progress(*columns, console=console, refresh_per_second=4) as bar:
    yield ProgressLine(job, total, done, bar, console)


def duration(seconds: float) -> str:
  """Returns a duration as text: 45 s, 3 min 20 s, 2 h 5 min."""
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds} s"
  if seconds < 3600:
    return f"{seconds // 60} min {seconds % 60} s"
  return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def note_of(metrics: Mapping[str, float]) -> str:
  """Returns the most important metrics of a step as text."""
  note = f"loss {metrics['train_total_loss']:.4f}"
  if any(name.startswith("on_policy/") for name in metrics):
    note += " on its own samples"
  if "time/steps_per_second" in metrics:
    note += (
      f"  {metrics['time/steps_per_second']:.2f} steps/s"
      f"  {metrics['time/examples_per_second']:.1f} examples/s"
    )
  return note


def say(line: str) -> None:
  """Prints a line on standard error."""
  if _is_silent:
    return
  print(printable(line), file=sys.stderr, flush=True)
