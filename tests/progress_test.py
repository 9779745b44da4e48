"""Progress without a terminal: plain lines on standard error, and silence where asked for."""

import itertools

import pytest

from dss_jax import progress
from dss_jax.progress import duration, note_of, progress_line, say


@pytest.fixture
def clock(monkeypatch):
  """Has every look at the clock come six seconds after the one before."""
  ticks = itertools.count(0, 6)
  monkeypatch.setattr(progress.time, "monotonic", lambda: next(ticks))


def test_plain_lines_come_seldom_and_at_the_end(clock, capsys):
  with progress_line("step", 10, 2) as line:
    for done in (3, 4, 10):
      line.update(done, f"loss {done}")
  out, err = capsys.readouterr()
  assert out == ""
  # A line comes ten seconds after the one before, or when all is done.
  assert err.splitlines() == [
    "step 4/10  loss 4  36 s left",
    "step 10/10  loss 10  0 s left",
  ]


def test_a_silent_process_prints_nothing(monkeypatch, capsys):
  say("before")
  monkeypatch.setattr(progress, "_is_silent", False)
  progress.be_silent()
  say("after")
  with progress_line("step", 1) as line:
    line.say("a line")
    line.update(1)
  assert capsys.readouterr() == ("", "before\n")


@pytest.mark.parametrize(
  ("seconds", "text"),
  [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3599.4, "59 min 59 s"),
   (7500, "2 h 5 min")],
)  # fmt: skip
def test_durations(seconds, text):
  assert duration(seconds) == text


def test_the_note_has_speed_only_where_it_was_measured():
  assert note_of({"train_total_loss": 1.5}) == "loss 1.5000"
  sampled = {"train_total_loss": 1.5, "on_policy/ended": 0.5}
  assert note_of(sampled) == "loss 1.5000 on its own samples"
  speed = {"time/steps_per_second": 2.0, "time/examples_per_second": 48.0}
  assert note_of({"train_total_loss": 1.5, **speed}) == "loss 1.5000  2.00 steps/s  48.0 examples/s"
