"""`dss annotate --signal logits` and `dss distill --teacher-logits`, as a user runs them."""

import shutil

import jax
import numpy as np
import pytest

from dss_jax.teachers import logit_writer
from dss_jax.teachers.logit_writer import LogitWriter

LENGTHS = ("--max-input-tokens", "64", "--max-output-tokens", "32")
ROWS = ("--dataset", "train.jsonl", "--vocabulary", "bytes", "--mesh", "data=1", *LENGTHS)


def annotate(dss, *flags, rows=ROWS):
  return dss("annotate", "--signal", "logits", *rows, "--batch-size", "4", *flags)


@pytest.fixture(scope="module")
def taught(finished):
  """The finished student as a teacher, with its next tokens in `logits` and `draws`."""
  for output, flags in (("logits", ("--top-k", "8")), ("draws", ("--draws", "20"))):
    outcome = annotate(finished, "--teacher-model", "student", *flags, "--output", output)
    assert outcome.code == 0, outcome.err
  return finished


@pytest.fixture
def dss_taught(taught, dss):
  """A folder of one's own with all of that."""
  for name in ("student", "logits", "draws"):
    shutil.copytree(taught.folder / name, dss.folder / name)
  return dss


def files_of(dss, name):
  return {k: v for k, v in dss.tree(name).items() if k != ".lock"}


@pytest.mark.parametrize(("output", "flags"), [("logits", "--top-k 8"), ("draws", "--draws 20")])
def test_killed_and_started_again(monkeypatch, dss_taught, output, flags):
  """The same files, byte for byte, and the same report."""
  command = ("--teacher-model", "student", *flags.split(), "--output", "again")
  monkeypatch.setattr(logit_writer, "COMMIT_BATCHES", 2)
  append = LogitWriter.append

  def killed(writer, *arguments):
    if writer.batches == 5:
      raise KeyboardInterrupt
    append(writer, *arguments)

  monkeypatch.setattr(LogitWriter, "append", killed)
  assert annotate(dss_taught, *command).code == 130
  monkeypatch.setattr(LogitWriter, "append", append)
  assert "journal.json" in files_of(dss_taught, "again")
  outcome = annotate(dss_taught, *command)
  assert outcome.code == 0
  assert "bytes a token" in outcome.err
  assert outcome.json["examples"] == 40
  assert outcome.json["aligned_percent"] == 100.0
  assert files_of(dss_taught, "again") == files_of(dss_taught, output)
  again = annotate(dss_taught, *command)
  assert "nothing is left to do" in again.err
  assert again.json == outcome.json


def test_training_from_it_needs_no_teacher_and_resumes(dss_taught):
  """The same weights as without the stop, and the file's digest in the card."""
  shutil.rmtree(dss_taught.folder / "student")
  kind = ("--kind", "step-by-step,response", "--teacher-logits", "draws")
  dss_taught.train("undisturbed", *kind)
  dss_taught.train("parts", *kind, "--train-steps", "2")
  dss_taught.train("parts", *kind)
  assert dss_taught.numbers("parts")[-3:] == dss_taught.numbers("undisturbed")[-3:]
  assert "response_label/train_loss" in dss_taught.numbers("undisturbed")[0]
  jax.tree.map(
    np.testing.assert_array_equal,
    dss_taught.weights("parts")[4],
    dss_taught.weights("undisturbed")[4],
  )
  card = dss_taught.card("undisturbed")["teacher_model"]
  assert card["model"] == "draws"
  shutil.rmtree(dss_taught.folder / "draws")
  shutil.copytree(dss_taught.folder / "logits", dss_taught.folder / "draws")
  outcome = dss_taught("distill", *dss_taught.flags("parts", *kind, "--train-steps", "6"))
  assert outcome.code == 2
  assert "another teacher than draws" in outcome.err


def test_a_teacher_with_another_vocabulary(worded, dss):
  """Its sorted probabilities, where it has read the same text, train a student of bytes."""
  shutil.copytree(worded.folder / "student", dss.folder / "teacher")
  command = ("--teacher-model", "teacher", "--top-k", "6", "--output", "logits")
  outcome = annotate(dss, *command)
  assert outcome.code == 0, outcome.err
  assert outcome.json["mode"] == "sorted"
  # Words are read whole, so few letters are aligned, but the ends are.
  assert 10 < outcome.json["aligned_percent"] < 90
  assert "has read the same text at" in outcome.err
  dss.train("new", "--kind", "step-by-step,universal", "--teacher-logits", "logits")
  assert dss.numbers("new")[0]["universal_label/train_loss"] > 0
  refused = dss("distill", *dss.flags("x", "--kind", "response", "--teacher-logits", "logits"))
  assert refused.code == 2
  assert "give --kind universal" in refused.err
  draws = annotate(dss, "--teacher-model", "teacher", "--draws", "6", "--output", "draws")
  assert draws.code == 2
  assert "give --top-k" in draws.err


WRONG_FLAGS = {
  "no teacher": ((), ["give --teacher-model"]),
  "neither": (("--teacher-model", "student"), ["neither of --top-k and --draws"]),
  "both": (
    ("--teacher-model", "student", "--top-k", "2", "--draws", "2"),
    ["both of --top-k and --draws"],
  ),
  "none of them": (("--teacher-model", "student", "--top-k", "0"), ["--top-k", "0", "x>=1"]),
  "too many": (("--teacher-model", "student", "--top-k", "385"), ["--top-k 385", "384"]),
  "cold": (
    ("--teacher-model", "student", "--top-k", "2", "--temperature", "0"),
    ["--temperature", "0.01"],
  ),
  "no model": (("--teacher-model", "gone", "--top-k", "2"), ["--teacher-model"]),
  "lengths of its own": (
    ("--teacher-model", "student", "--top-k", "2", "--teacher-max-input-tokens", "9"),
    ["--teacher-max-input-tokens", "leave them out"],
  ),
}


@pytest.mark.parametrize(("flags", "says"), WRONG_FLAGS.values(), ids=WRONG_FLAGS)
def test_wrong_flags(taught, refuses, flags, says):
  command = ("annotate", "--signal", "logits", *ROWS, *flags, "--output", "new")
  refuses(*command, says=says, workshop=taught)


WRONG_RUNS = {
  "other rows": (("--dataset", "eval.jsonl"), ["logits", "for other rows"]),
  "other lengths": (("--max-output-tokens", "16"), ["--max-output-tokens 32"]),
  "another temperature": (
    ("--gin", "ResponseConfig.temperature=2.0"),
    ["temperature = 2", "--temperature 1"],
  ),
  "no file": (("--teacher-logits", "student"), ["student", "no meta.json"]),
  "a kind without it": (("--kind", "step-by-step"), ["no kind of this run uses it"]),
  "no divergence of draws": (
    ("--teacher-logits", "draws", "--gin", "ResponseConfig.divergence='reverse'"),
    ["'reverse'", "draws"],
  ),
}


@pytest.mark.parametrize(("flags", "says"), WRONG_RUNS.values(), ids=WRONG_RUNS)
def test_wrong_runs(taught, refuses, flags, says):
  command = taught.flags("new", "--kind", "response", "--teacher-logits", "logits", *flags)
  refuses("distill", *command, says=says, workshop=taught)


def test_a_damaged_file(dss_taught, refuses):
  path = dss_taught.folder / "logits" / "ids.uint16"
  path.write_bytes(path.read_bytes()[:-1])
  command = dss_taught.flags("new", "--kind", "response", "--teacher-logits", "logits")
  refuses("distill", *command, says=["ids.uint16 is missing or damaged"])
