"""A run that is killed or stopped at any moment goes on to the very same student."""

import os
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from dss_jax.train.metrics import MetricsWriter

# Programs that kill themselves in the middle of what must not be done by halves.
IN_THE_FIRST_FILES = """
import os, signal
from dss_jax.student import model_dir as student
student.write_card = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
"""
WHILE_SAVING = """
import os, signal
from dss_jax.train.checkpointing import Checkpoints
save = Checkpoints.save
def save_and_die(self, state, step, *arguments):
  save(self, state, step, *arguments)
  if step == 9:
    os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.save = save_and_die
"""
IN_A_LINE = """
import os, signal
from dss_jax.train.metrics import MetricsWriter
write = MetricsWriter.write
def write_and_die(self, step, metrics):
  if step == 14:
    self._file.write('{"step": 14, "train_tot')
    self._file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
  write(self, step, metrics)
MetricsWriter.write = write_and_die
"""
RUN = "from dss_jax.cli.main import main; main()"


def assert_same_run(one, name, other, other_name):
  assert one.numbers(name) == other.numbers(other_name)
  cards = [one.card(name), other.card(other_name)]
  for card in cards:
    del card["padding_shares"]  # those of the last start
  assert cards[0] == cards[1]
  theirs, ours = one.weights(name), other.weights(other_name)
  assert theirs.keys() == ours.keys()
  jax.tree.map(np.testing.assert_array_equal, theirs, ours)


def kill_at(process, path, step):
  """Kills a process as soon as it has written a line of that step."""
  deadline = time.monotonic() + 300
  while time.monotonic() < deadline:
    text = path.read_text() if path.exists() else ""
    if f'{{"step": {step},' in text:
      break
    assert process.poll() is None, process.communicate()
    time.sleep(0.001)
  process.kill()


def test_the_undisturbed_run_is_worth_comparing(whole):
  card = whole.card("whole")
  assert card["best_step"] < card["steps"] < 40
  assert card["stopped_early"]
  assert whole.weights("whole").keys() == {card["best_step"], card["steps"]}
  assert {line["step"] for line in whole.numbers("whole")} == set(range(1, card["steps"] + 1))


def test_killed_again_and_again(dss):
  outcome = dss.finish(dss.start("distill", *dss.flags("whole", *dss.LONG)))
  assert outcome.code == 0, outcome.err
  flags = dss.flags("killed", *dss.LONG)
  for program in (IN_THE_FIRST_FILES, WHILE_SAVING, IN_A_LINE):
    outcome = dss.finish(dss.start("distill", *flags, code=program + RUN))
    assert outcome.code == -signal.SIGKILL, outcome.err
  step = random.Random(os.getpid()).randrange(16, dss.card("whole")["steps"])
  process = dss.start("distill", *flags)
  kill_at(process, dss.folder / "killed" / "metrics.jsonl", step)
  assert dss.finish(process).code == -signal.SIGKILL
  outcome = dss.finish(dss.start("distill", *flags))
  assert outcome.code == 0, outcome.err
  assert_same_run(dss, "killed", dss, "whole")
  names = {path.name for path in (dss.folder / "killed" / "checkpoints").iterdir()}
  assert names == {str(step) for step in dss.weights("killed")}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_by_a_signal(dss, whole, monkeypatch, number, code):
  write = MetricsWriter.write

  def write_and_signal(self, step, metrics):
    write(self, step, metrics)
    if step == 7:
      os.kill(os.getpid(), number)

  with monkeypatch.context() as patch:
    patch.setattr(MetricsWriter, "write", write_and_signal)
    outcome = dss("distill", *dss.flags("stopped", *dss.LONG))
  saved = max(dss.weights("stopped"))
  assert outcome.code == code
  assert outcome.out == ""
  sentence = outcome.err.splitlines()[-1]
  assert sentence.startswith(f"dss: stopped by {number.name} after step {saved}, which is saved")
  assert 7 <= saved <= 9
  assert dss.numbers("stopped")[-1]["step"] == saved
  assert not dss.card("stopped")["finished"]

  outcome = dss("distill", *dss.flags("stopped", *dss.LONG))
  assert outcome.code == 0, outcome.err
  assert f"going on after step {saved}" in outcome.err
  assert_same_run(dss, "stopped", whole, "whole")


def test_a_finished_run_is_left_as_it_is(with_student):
  before = with_student.tree()
  outcome = with_student.train("student")
  assert with_student.tree() == before
  assert "student is finished: trained for 4 steps" in outcome.err
  assert outcome.json["metrics"] == with_student.card()["metrics"]


def test_more_steps_go_on_from_the_last(with_student):
  with_student.train("student", "--train-steps", "8")
  with_student.train("straight", "--train-steps", "8")
  assert_same_run(with_student, "student", with_student, "straight")
  assert "RunConfig.train_steps = 8" in (with_student.folder / "student" / "config.gin").read_text()


def test_what_a_kill_left_unfinished_is_removed(with_student):
  checkpoints = with_student.folder / "student" / "checkpoints"
  shutil.copytree(checkpoints / "4", checkpoints / "3.orbax-checkpoint-tmp")
  outcome = with_student(
    *("predict", "--mesh", "data=1", "--model", "student", "--dataset", "eval.jsonl"),
    *("--output", "answers.jsonl"),
  )
  assert outcome.code == 0, outcome.err
  assert (checkpoints / "3.orbax-checkpoint-tmp").exists()
  with_student.train("student", "--train-steps", "6")
  assert {path.name for path in checkpoints.iterdir()} <= {"4", "6"}


def test_more_steps_where_the_rate_depends_on_them_are_another_run(with_student, refuses):
  config = with_student.folder / "student" / "config.gin"
  config.write_text(config.read_text().replace("schedule = 'constant'", "schedule = 'linear'"))
  flags = with_student.flags("student", "--gin", "OptimizerConfig.schedule='linear'")
  says = ["RunConfig.train_steps was 4, is 8"]
  refuses("distill", *flags, "--train-steps", "8", says=says, workshop=with_student)


def test_a_run_resumes_without_the_checkpoint_it_began_from(with_student):
  flags = with_student.flags("new", "--initial-checkpoint", "student")
  assert with_student("distill", *flags).code == 0
  (with_student.folder / "student").rename(with_student.folder / "away")
  outcome = with_student("distill", *flags, "--train-steps", "6")
  assert outcome.code == 0, outcome.err
  assert "going on after step 4" in outcome.err


def test_rows_and_vocabulary_that_moved_are_the_same_run(with_student, refuses):
  folder = with_student.folder
  (folder / "disk 2").mkdir()
  for name in ("train", "eval"):
    (folder / f"{name}.jsonl").rename(folder / "disk 2" / f"{name} [1].jsonl")
  moved = [
    *with_student.flags("student"),
    *("--dataset", "disk 2/train [1].jsonl", "--eval-dataset", "disk 2/eval [1].jsonl"),
    *("--train-steps", "6"),
  ]
  outcome = with_student("distill", *moved)
  assert outcome.code == 0, outcome.err
  assert "going on after step 4" in outcome.err
  assert "disk 2/train [1].jsonl" in (folder / "student" / "config.gin").read_text()
  rows = (folder / "disk 2" / "train [1].jsonl").read_text().splitlines(keepends=True)
  (folder / "train.jsonl").write_text("".join(rows[:-1]))
  other = [*moved, "--dataset", "train.jsonl", "--train-steps", "8"]
  says = ["the train data are not those that this run began with"]
  refuses("distill", *other, says=says, workshop=with_student)
