"""Students by name: registered by the command that trains, used when the run's folder is gone."""

import os
import shutil

import pytest

from dss_jax.student.registry import Registry

PREDICT = ("predict", "--mesh", "data=1", "--dataset", "eval.jsonl", "--output", "answers.jsonl")


def registered(dss):
  return Registry(dss.folder / "registry")


@pytest.fixture
def named(with_student):
  """A working folder with a finished student, which is registered as adder@1."""
  outcome = with_student.train("student", "--display-name", "adder", "--registry", "registry")
  assert outcome.json["registered"] == "adder@1"
  return with_student


def test_a_student_is_used_by_name(named):
  assert named(*PREDICT, "--model", "student").code == 0
  answers = named.read("answers.jsonl")
  profile = (named.folder / "student" / "inputs.json").read_bytes()
  shutil.rmtree(named.folder / "student")
  assert (named.folder / "registry" / "adder" / "1" / "inputs.json").read_bytes() == profile
  for model in ("adder", "adder@1", "adder@default", "adder@latest"):
    os.remove(named.folder / "answers.jsonl")
    outcome = named(*PREDICT, "--model", model, "--registry", "registry")
    assert outcome.code == 0, outcome.err
    assert named.read("answers.jsonl") == answers
  outcome = named(
    *("evaluate", "--model", "adder", "--registry", "registry"),
    *("--mesh", "data=1", "--dataset", "eval.jsonl"),
  )
  assert outcome.json["model"] == str(named.folder / "registry" / "adder" / "1")
  outcome = named(
    *("export", "--model", "adder@1", "--registry", "registry"),
    *("--format", "hf", "--output", "exported"),
  )
  assert outcome.code == 0, outcome.err
  outcome = named(
    *("annotate", "eval.jsonl", "--teacher", f"t5:{named.folder}/registry/adder/1"),
    *("--output", "annotated.jsonl", "--keep-going"),
  )
  assert outcome.code == 0, outcome.err


def test_a_teacher_by_name(named, monkeypatch):
  monkeypatch.setenv("DSS_REGISTRY_DIR", str(named.folder / "registry"))
  shutil.rmtree(named.folder / "student")
  outcome = named(
    *("annotate", "eval.jsonl", "--teacher", "t5:adder", "--teacher-labels", "teacher"),
    *("--output", "annotated.jsonl", "--keep-going"),
  )
  assert outcome.code == 0, outcome.err
  # The version that the name means now, so that another one's answers are not taken for its.
  assert outcome.json["teacher"] == "t5:adder@1"


def test_a_student_with_pieces(with_words):
  """Its version has its vocabulary."""
  with_words.train(
    *("student", "--vocabulary", "student/sentencepiece.model"),
    *("--display-name", "adder", "--registry", "registry"),
  )
  assert with_words(*PREDICT, "--model", "student").code == 0
  answers = with_words.read("answers.jsonl")
  shutil.rmtree(with_words.folder / "student")
  outcome = with_words(*PREDICT, "--model", "adder", "--registry", "registry")
  assert outcome.code == 0, outcome.err
  assert with_words.read("answers.jsonl") == answers


def test_a_finished_run_is_registered_once(named):
  named.train("student", "--display-name", "adder", "--registry", "registry")
  assert [version.number for version in registered(named).versions("adder")] == [1]
  named.train("student", "--display-name", "other", "--registry", "registry")
  assert registered(named).names() == ["adder", "other"]
  # More steps are another student.
  outcome = named.train(
    *("student", "--train-steps", "6", "--display-name", "adder", "--registry", "registry"),
  )
  assert outcome.json["registered"] == "adder@2"
  assert "adder alone still means version 1" in outcome.err
  record = registered(named).version("adder@2").record
  assert record["steps"] == 6
  assert record["metrics"] == named.card()["metrics"]
  assert record["lineage"]["data_digest"] == named.card()["data"]["train"]


def test_each_training_command_registers(dss):
  for command in ("distill", "tune"):
    dss.train(command, "--display-name", "adder", "--registry", "registry", command=command)
  configuration = dss.folder / "distill" / "config.gin"
  outcome = dss(
    *("train", f"--gin_file={configuration}", "--gin.RunConfig.model_dir='trained'"),
    *("--display-name", "adder", "--registry", "registry"),
  )
  assert outcome.code == 0, outcome.err
  versions = registered(dss).versions("adder")
  assert [version.record["lineage"]["model_dir"] for version in versions] == [
    str(dss.folder / name) for name in ("distill", "tune", "trained")
  ]


def test_a_name_is_refused_before_training(dss, refuses):
  flags = dss.flags("student", "--display-name", "../x", "--registry", "registry")
  refuses("distill", *flags, says=["'../x': cannot be a model's name"])
  flags = dss.flags("student", "--display-name", "x", "--registry", "train.jsonl")
  refuses("distill", *flags, says=["train.jsonl: cannot be written"])


def test_an_unknown_name(named, refuses):
  for command in (PREDICT, ("export", "--format", "hf", "--output", "new")):
    refuses(
      *command,
      *("--model", "ader", "--registry", "registry"),
      says=["ader: is no folder", "did you mean adder?"],
      workshop=named,
    )


def test_the_commands(named):
  flags = ("--registry", "registry")
  listed = named("models", "list", *flags)
  assert listed.code == 0
  head, line = listed.out.splitlines()
  assert head.split()[:4] == ["version", "aliases", "student", "parameters"]
  assert line.startswith("adder@1  default, latest  tiny")
  (version,) = named("models", "list", "--json", *flags).json
  assert (version["name"], version["version"]) == ("adder", 1)
  assert version["step"] == named.card()["best_step"]
  assert version["size_bytes"] > 4 * version["parameters"] > 0
  shown = named("models", "show", "adder", "--json", *flags).json
  assert {**version, "report": named.card()["data"]["report"]} == shown
  assert "lineage dataset: train.jsonl" in named("models", "show", "adder@1", *flags).out
  outcome = named("models", "alias", "adder@1", "prod", *flags)
  assert outcome.json == {"version": "adder@1", "aliases": ["default", "latest", "prod"]}
  outcome = named("models", "delete", "adder", *flags)
  assert outcome.code == 2
  assert "the alias prod means it" in outcome.err
  outcome = named("models", "alias", "adder@1", "prod", "--remove", *flags)
  assert outcome.json["aliases"] == ["default", "latest"]
  assert named("models", "delete", "adder", *flags).json == {"deleted": ["adder@1"]}
  assert "no student is registered" in named("models", "list", *flags).out
