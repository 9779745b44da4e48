"""Kinds of distillation through the command line: killed, resumed, and used as any student is."""

import signal

import pytest

from tests.e2e.resume_test import RUN, assert_same_run

# Of another width and depth than the student's.
TEACHER = (
  *("--gin", "T5Config.emb_dim=12", "--gin", "T5Config.num_encoder_layers=2"),
  *("--gin", "T5Config.num_decoder_layers=3"),
)
KINDS = (
  *("--kind", "step-by-step,feature", "--teacher-model", "teacher"),
  *("--train-steps", "6"),
)
# Step 4 is saved when the checkpoint of step 2 is whole.
DIES = """
import os, signal
from dss_jax.train.metrics import MetricsWriter
write = MetricsWriter.write
def write_and_die(self, step, metrics):
  if step == 5:
    os.kill(os.getpid(), signal.SIGKILL)
  write(self, step, metrics)
MetricsWriter.write = write_and_die
"""


@pytest.fixture
def taught(dss):
  """A working folder with a teacher."""
  dss.train("teacher", *TEACHER, "--train-steps", "2")
  return dss


def test_killed_and_resumed(taught):
  flags = taught.flags("killed", *KINDS)
  outcome = taught.finish(taught.start("distill", *taught.flags("whole", *KINDS)))
  assert outcome.code == 0, outcome.err
  outcome = taught.finish(taught.start("distill", *flags, code=DIES + RUN))
  assert outcome.code == -signal.SIGKILL, outcome.err
  outcome = taught.finish(taught.start("distill", *flags))
  assert outcome.code == 0, outcome.err
  assert "going on after step" in outcome.err
  assert_same_run(taught, "killed", taught, "whole")
  checkpoint = taught.folder / "killed" / "checkpoints" / "6"
  assert (checkpoint / "projections").is_dir()
  last = taught.numbers("killed")[-2]
  assert last["feature_encoder/train_loss"] > 0
  use_as_any_student(taught, "killed")


def use_as_any_student(dss, model):
  """Evaluates, predicts, exports and registers it, and starts another run from its weights."""
  common = ("--mesh", "data=1", "--model", model, "--dataset", "eval.jsonl")
  for command in (
    ("evaluate", *common),
    ("predict", *common, "--output", "answers.jsonl"),
    ("export", "--model", model, "--format", "hf", "--output", "exported"),
    # A finished run that is given a name is registered.
    ("distill", *dss.flags(model, *KINDS), "--display-name", "adder", "--registry", "registry"),
    ("distill", *dss.flags("next", *KINDS), "--initial-checkpoint", model),
  ):
    outcome = dss(*command)
    assert outcome.code == 0, outcome.err
  kept = {path.name for path in (dss.folder / "registry/adder/1/checkpoints").glob("*/*")}
  assert "params" in kept
  assert not kept & {"optimizer", "projections", "average"}
