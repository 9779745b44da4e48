"""One run in several processes: the same student, whoever is killed or stopped in between."""

import os
import re
import signal
import socket
from typing import NamedTuple

import jax
import numpy as np
import pytest

DEVICES = 8
STEPS = 20
FEW = ("--train-steps", "4", "--evaluation-interval", "2")
RUN = "from dss_jax.cli.main import main; main()"
# Sends itself a signal before it takes its eighth step.
IN_THE_EIGHTH_STEP = """
import os, signal
from dss_jax.train.step import Trainer
take, taken = Trainer.train_step, []
def signalled(self, state, batch):
  taken.append(1)
  if len(taken) == 8:
    os.kill(os.getpid(), signal.{signal})
  return take(self, state, batch)
Trainer.train_step = signalled
"""


SHORT = (
  *("--batch-size", str(DEVICES), "--seed", "3"),
  *("--train-steps", str(STEPS), "--evaluation-interval", "5", "--no-early-stopping"),
)


class Role(NamedTuple):
  """What one of the processes does otherwise than the rest."""

  code: str = ""
  flags: tuple[str, ...] = ()


@pytest.fixture
def several(dss, monkeypatch):
  """Runs `dss distill` in several processes with so many devices in all; gives their outcomes.

  One process is this one.
  """

  def several(model_dir, count, *flags, roles=None, devices=DEVICES):
    flags = ("--mesh", f"data={devices}", *flags)
    if count == 1:
      return [dss("distill", *dss.flags(model_dir, *SHORT, *flags))]
    with socket.socket() as found:
      found.bind(("127.0.0.1", 0))
      port = found.getsockname()[1]
    before = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    each = f"--xla_force_host_platform_device_count={devices // count}"
    monkeypatch.setenv("XLA_FLAGS", f"{before} {each}")
    started = []
    for number in range(count):
      role = (roles or {}).get(number, Role())
      place = ("--coordinator", f"127.0.0.1:{port}", "--num-processes", count)
      place += ("--process-id", number, "--heartbeat-timeout-seconds", "20")
      own = dss.flags(model_dir, *SHORT, *place, *flags, *role.flags)
      started.append(dss.start("distill", *own, code=role.code + RUN))
    return [dss.finish(process) for process in started]

  rows(dss)
  return several


def rows(dss):
  """Rows of one length, so that there is one shape to compile for."""
  sums = [
    {"input_text": f"Add {a} and {b}.", "output_text": f"{a + b}", "rationale": f"It is {a + b}."}
    for a in range(5)
    for b in range(5)
  ]
  dss.write("train.jsonl", sums[:16])
  dss.write("eval.jsonl", sums[16:24])


def assert_same_numbers(ours, theirs):
  """To rounding: sums over devices are taken in another order between processes."""
  assert [line.keys() for line in ours] == [line.keys() for line in theirs]
  for mine, other in zip(ours, theirs, strict=True):
    for name, value in mine.items():
      assert value == pytest.approx(other[name], rel=1e-5, abs=1e-7), (mine["step"], name)


def complaints(outcome):
  """What a process said of its end."""
  assert "Traceback" not in outcome.err, outcome.err
  return [line for line in outcome.err.splitlines() if line.startswith("dss: ")]


@pytest.mark.slow
def test_two_processes_sample_what_one_samples(dss, several):
  dss.train("teacher", "--seed", "7")
  flags = (*FEW, "--kind", "on-policy", "--teacher-model", "teacher", "--on-policy-share", "1")
  first, second = several("two", 2, *flags, devices=2)
  assert (first.code, second.code) == (0, 0), first.err + second.err
  (alone,) = several("one", 1, *flags, devices=2)
  assert alone.code == 0, alone.err
  lines = dss.numbers("one")
  assert sum("on_policy/ended" in line for line in lines) == 4
  assert_same_numbers(dss.numbers("two"), lines)


@pytest.mark.parametrize(
  ("devices", "flags"),
  [(2, FEW), pytest.param(DEVICES, (), marks=pytest.mark.slow)],
  ids=["2 devices, 4 steps", "8 devices, 20 steps"],
)
def test_two_processes_train_the_student_that_one_trains(dss, several, devices, flags):
  first, second = several("two", 2, *flags, devices=devices)
  assert (first.code, second.code) == (0, 0), first.err + second.err
  (alone,) = several("one", 1, *flags, devices=devices)
  assert alone.code == 0, alone.err
  ours, theirs = dss.numbers("two"), dss.numbers("one")
  # One writer: each step once.
  steps = [line["step"] for line in ours if "train_total_loss" in line]
  assert steps == list(range(1, dss.card("one")["steps"] + 1))
  assert_same_numbers(ours, theirs)
  assert len(list((dss.folder / "two" / "tensorboard").iterdir())) == 1
  # One of them tells of it, and what it prints is JSON alone.
  assert (second.out, second.err) == ("", "")
  assert first.json["steps"] == len(steps)
  assert "Gloo" not in first.out + first.err
  # What they saved together is read here, on one device.
  weights, others = dss.weights("two"), dss.weights("one")
  assert weights.keys() == others.keys()
  jax.tree.map(
    lambda mine, other: np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6),
    weights,
    others,
  )


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_the_end_of_one_is_the_end_of_all_and_four_go_on(dss, several, killed):
  dies = Role(IN_THE_EIGHTH_STEP.format(signal="SIGKILL"))
  outcomes = several("killed", 2, roles={killed: dies})
  assert outcomes[killed].code == -signal.SIGKILL
  left = outcomes[1 - killed]
  assert left.code == 1, left.err
  (sentence,) = complaints(left)
  assert f"process {killed} of 2" in sentence
  assert "no longer answers" in sentence
  assert "start all of them again" in sentence

  outcomes = several("killed", 4)
  assert [outcome.code for outcome in outcomes] == [0] * 4, outcomes[0].err
  (undisturbed,) = several("undisturbed", 1)
  assert undisturbed.code == 0, undisturbed.err
  assert_same_numbers(dss.numbers("killed"), dss.numbers("undisturbed"))


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_signal_to_one_stops_all_after_the_same_step(dss, several, stopped):
  asked = Role(IN_THE_EIGHTH_STEP.format(signal="SIGTERM"))
  outcomes = several("stopped", 2, roles={stopped: asked})
  assert [outcome.code for outcome in outcomes] == [143, 143], outcomes
  sentences = {line for outcome in outcomes for line in complaints(outcome)}
  saved = max(dss.weights("stopped"))
  assert len(sentences) == 1
  assert f"stopped by SIGTERM after step {saved}, which is saved" in sentences.pop()
  assert 8 <= saved <= 10
  assert dss.numbers("stopped")[-1]["step"] == saved

  # On to the end in one process, on the same eight devices.
  (outcome,) = several("stopped", 1)
  assert outcome.code == 0, outcome.err
  assert f"going on after step {saved}" in outcome.err
  (undisturbed,) = several("undisturbed", 1)
  assert undisturbed.code == 0, undisturbed.err
  assert_same_numbers(dss.numbers("stopped"), dss.numbers("undisturbed"))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("role", "says"),
  [
    (Role(flags=("--seed", "4")), "RunConfig.seed is 4 in process 1 and 3 in process 0"),
    (Role(flags=("--dataset", "no.jsonl")), "DataConfig.dataset is 'no.jsonl' in process 1"),
    (Role(flags=("--num-processes", "3")), "--num-processes is 3 in process 1 and 2 in process 0"),
    (Role(code="import os; os.chdir('other'); "), "the training data is 5 examples"),
    (Role(flags=("--alpha", "2")), "--alpha"),
  ],
  ids=["configuration", "file", "count", "data", "mistake"],
)
def test_processes_that_differ_do_not_begin(dss, several, role, says):
  (dss.folder / "other").mkdir()
  text = (dss.folder / "train.jsonl").read_text().splitlines(keepends=True)
  (dss.folder / "other" / "train.jsonl").write_text("".join(text[:5]))
  (dss.folder / "other" / "eval.jsonl").write_text((dss.folder / "eval.jsonl").read_text())
  outcomes = several("student", 2, roles={1: role})
  assert [outcome.code for outcome in outcomes] == [2, 2], outcomes
  for outcome in outcomes:
    (sentence,) = complaints(outcome)
    assert says in sentence
  assert not (dss.folder / "student").exists()


@pytest.mark.slow
def test_nobody_comes(dss, several):
  flags = ("--start-timeout-seconds", "4")
  alone = several("student", 2, *flags, roles={1: Role(flags=("--coordinator", "localhost:1"))})
  assert [outcome.code for outcome in alone] == [2, 2], alone
  for outcome in alone:
    (sentence,) = complaints(outcome)
    assert "within 4 seconds" in sentence
  assert "process 0 could not be reached at localhost:1" in alone[1].err
  assert not (dss.folder / "student").exists()
