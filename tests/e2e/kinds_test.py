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
  *(
    "--kind",
    "step-by-step,feature,relation,attention,self-average,self-layers,mutual-information",
  ),
  *("--teacher-model", "teacher", "--train-steps", "6"),
  *("--gin", "T5Config.num_decoder_layers=2", "--gin", "AttentionConfig.relation_heads=4"),
  *("--gin", "SelfAverageConfig.decay=0.5"),
)
TERMS = (
  *("feature_encoder", "feature_decoder", "relation_distance", "relation_angle"),
  *("attention_encoder", "attention_decoder", "self_average_label", "self_average_rationale"),
  *("self_layers_1_label", "self_layers_1_rationale", "mutual_information"),
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


@pytest.mark.slow
def test_killed_and_resumed(taught):
  flags = taught.flags("killed", *KINDS)
  outcome = taught.finish(taught.start("distill", *taught.flags("undisturbed", *KINDS)))
  assert outcome.code == 0, outcome.err
  outcome = taught.finish(taught.start("distill", *flags, code=DIES + RUN))
  assert outcome.code == -signal.SIGKILL, outcome.err
  outcome = taught.finish(taught.start("distill", *flags))
  assert outcome.code == 0, outcome.err
  assert "going on after step" in outcome.err
  assert_same_run(taught, "killed", taught, "undisturbed")
  checkpoint = taught.folder / "killed" / "checkpoints" / "6"
  assert {"projections", "average"} <= {path.name for path in checkpoint.iterdir()}
  lines = [line for line in taught.numbers("killed") if "train_total_loss" in line]
  assert len(lines) == 6
  for term in TERMS:
    assert lines[-1][f"{term}/train_loss"] > 0, term


def test_it_is_used_as_any_student(taught):
  """What lies beside its weights is left behind in the run's own checkpoints."""
  kinds = ("--kind", "step-by-step,feature,self-average", "--teacher-model", "teacher")
  taught.train("student", *kinds, "--display-name", "adder", "--registry", "registry")
  saved = {path.name for path in (taught.folder / "student/checkpoints").glob("*/*")}
  assert {"params", "optimizer", "projections", "average"} <= saved
  kept = {path.name for path in (taught.folder / "registry/adder/1/checkpoints").glob("*/*")}
  assert "params" in kept
  assert not kept & {"optimizer", "projections", "average"}
  common = ("--mesh", "data=1", "--registry", "registry", "--dataset", "eval.jsonl")
  for command in (
    ("evaluate", "--model", "adder", *common),
    ("predict", "--model", "adder", *common, "--output", "answers.jsonl"),
    ("export", "--model", "student", "--format", "hf", "--output", "exported"),
    ("distill", *taught.flags("next", *kinds), "--initial-checkpoint", "student"),
  ):
    outcome = taught(*command)
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
def test_born_again(dss):
  """A student of the same size learns from an earlier one, by response alone."""
  dss.train("first")
  outcome = dss.train(
    *("again", "--kind", "labels,response", "--teacher-model", "first", "--seed", "1"),
    *("--term-gradients", "--kind-weight", "response=0.001"),
  )
  lines = dss.numbers("again")
  assert lines[0]["response_label/train_loss"] > 0
  norms = [line for line in lines if "response_label/train_gradient_norm" in line]
  assert [line["step"] for line in norms] == [2, 4]
  assert all(line["label/train_gradient_norm"] > 0 for line in norms)
  assert "so it teaches next to nothing; raise --kind-weight response=X" in outcome.err
  assert outcome.err.count("teaches next to nothing") == 1


@pytest.mark.parametrize(
  ("kinds", "says"),
  [
    ("feature", "--kind feature needs a teacher's hidden states"),
    ("labels,mutual-information", "alpha 1 trains on labels alone"),
    ("self-layers", "has 1 decoder layers, and each of these must be before the last"),
  ],
)
def test_what_a_kind_lacks_is_said_before_anything_is_written(refuses, dss, kinds, says):
  refuses("distill", *dss.flags("student", "--kind", kinds), says=[says])
