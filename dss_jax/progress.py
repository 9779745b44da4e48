"""How a long job shows that it is alive: a live line on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Elsewhere than on a terminal, a plain line comes this often at the most.
PLAIN_LINE_SECONDS = 10.0

_is_silent = False


def be_silent() -> None:
  """Has this process tell nothing from now on: of several that do one job, one tells of it."""
  global _is_silent
  _is_silent = True


class ProgressLine:
  """Tells how far a job is; use it through `progress_line`."""

  def __init__(self, what: str, total: int, done: int, bar: Progress | None, console: Console):
    self._what = what
    self._total = total
    self._bar = bar
    self._console = console
    self._task = None if bar is None else bar.add_task(what, total=total, completed=done, note="")
    self._last_line = time.monotonic()
    self._done = done
    # The rate counts from the first update: what came before it was compiling.
    self._started: float | None = None
    self._first = done

  def update(self, done: int, note: str = "") -> None:
    """`done` of the total are done; `note` is told beside the rate."""
    self._done = done
    if self._bar is not None and self._task is not None:
      self._bar.update(self._task, completed=done, note=note)
      return
    now = time.monotonic()
    if self._started is None:
      self._started, self._first = now, done
    if now - self._last_line >= PLAIN_LINE_SECONDS or done == self._total:
      self._last_line = now
      self._print_plain(note, now)

  def say(self, line: str) -> None:
    """A line that stays."""
    self._console.print(line, highlight=False, markup=False, soft_wrap=True)

  def _print_plain(self, note: str, now: float) -> None:
    assert self._started is not None
    rate = (self._done - self._first) / max(now - self._started, 1e-9)
    left = f"  {duration((self._total - self._done) / rate)} left" if rate else ""
    self.say(f"{self._what} {self._done}/{self._total}  {note}{left}")


@contextlib.contextmanager
def progress_line(what: str, total: int, done: int = 0) -> Iterator[ProgressLine]:
  """A line about `what` on standard error, out of the way of a command's output."""
  console = Console(stderr=True, quiet=_is_silent)
  if not console.is_terminal:
    yield ProgressLine(what, total, done, None, console)
    return
  columns = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("{task.fields[note]}"),
    TimeRemainingColumn(elapsed_when_finished=True),
  )
  with Progress(*columns, console=console, refresh_per_second=4) as bar:
    yield ProgressLine(what, total, done, bar, console)


def duration(seconds: float) -> str:
  """Seconds as people say them: 45 s, 3 min 20 s, 2 h 5 min."""
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds} s"
  if seconds < 3600:
    return f"{seconds // 60} min {seconds % 60} s"
  return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def note_of(metrics: Mapping[str, float]) -> str:
  """The few numbers worth a glance."""
  note = f"loss {metrics['train_total_loss']:.4f}"
  if "time/steps_per_second" in metrics:
    note += (
      f"  {metrics['time/steps_per_second']:.2f} steps/s"
      f"  {metrics['time/examples_per_second']:.1f} examples/s"
    )
  return note


def say(line: str) -> None:
  """A line on standard error."""
  if _is_silent:
    return
  print(line, file=sys.stderr, flush=True)
