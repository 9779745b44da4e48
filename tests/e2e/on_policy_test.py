"""On-policy distillation from the command line: a teacher first, then students that ask it."""

import shutil

import jax
import numpy as np
import pytest

ON_POLICY = (
  *("--kind", "step-by-step,on-policy", "--teacher-model", "student"),
  *("--train-steps", "9", "--gin", "RunConfig.checkpoint_interval_steps=1"),
)
# The steps, from 1 on, whose targets are sampled at seed 0.
SAMPLED = [4, 8, 9]
IN_THE_LAST_STEP = """
import os, signal
from dss_jax.train.on_policy import OnPolicy
batch = OnPolicy.batch
def batch_or_die(self, params, step):
  if step == 8:
    os.kill(os.getpid(), signal.SIGKILL)
  return batch(self, params, step)
OnPolicy.batch = batch_or_die
"""
RUN = "from dss_jax.cli.main import main; main()"


@pytest.fixture(scope="module")
def taught(finished, tmp_path_factory):
  """A working folder with a teacher in `student`, and in `undisturbed` a whole run's student."""
  folder = tmp_path_factory.mktemp("taught") / "copy"
  shutil.copytree(finished.folder, folder)
  workshop = type(finished)(folder)
  workshop.said = workshop.finish(
    workshop.start("distill", *workshop.flags("undisturbed", *ON_POLICY))
  )
  assert workshop.said.code == 0, workshop.said.err
  return workshop


def test_what_a_run_says_and_counts(taught):
  says = (
    "the student samples the targets of 50 % of the steps, at temperature 1 and up to 32 tokens"
  )
  assert says in taught.said.err
  lines = [line for line in taught.numbers("undisturbed") if "train_total_loss" in line]
  assert [line["step"] for line in lines] == list(range(1, 10))
  assert [line["step"] for line in lines if "on_policy/ended" in line] == SAMPLED
  for line in lines:
    if line["step"] in SAMPLED:
      assert line["on_policy/ended"] + line["on_policy/cut_off"] == 1
      assert 1 <= line["on_policy/target_tokens"] <= 32
      assert "label/train_loss" not in line


@pytest.mark.slow
def test_killed_as_it_samples_and_resumed_it_is_the_same_student(taught):
  flags = taught.flags("killed", *ON_POLICY)
  killed = taught.finish(taught.start("distill", *flags, code=IN_THE_LAST_STEP + RUN))
  assert killed.code < 0
  assert taught.numbers("killed")[-1]["step"] in (7, 8)
  outcome = taught.finish(taught.start("distill", *flags))
  assert outcome.code == 0, outcome.err
  assert "going on after step" in outcome.err
  assert taught.numbers("killed") == taught.numbers("undisturbed")
  jax.tree.map(
    np.testing.assert_array_equal, taught.weights("killed"), taught.weights("undisturbed")
  )


def test_refusals(with_student, refuses):
  flags = with_student.flags("new", "--kind", "on-policy")
  refuses("distill", *flags, says=["--kind on-policy", "give --teacher-model"],
          workshop=with_student)  # fmt: skip
  teacher = ("--teacher-model", "student")
  for given, says in (
    (("--on-policy-share", "1.5"), ["--on-policy-share", "1.5"]),
    (("--kind-weight", "on-policy=2"), ["no loss 'on-policy'; choose from response"]),
    (("--gin", "OnPolicyConfig.max_tokens=0"), ["OnPolicyConfig.max_tokens", "at least 1"]),
  ):
    refuses("distill", *flags, *teacher, *given, says=says, workshop=with_student)


def test_another_share_is_another_run(taught, refuses):
  flags = taught.flags(
    "undisturbed", *ON_POLICY, "--train-steps", "12", "--on-policy-share", "0.25"
  )
  says = ["OnPolicyConfig.share was 0.5, is 0.25"]
  refuses("distill", *flags, says=says, workshop=taught)
