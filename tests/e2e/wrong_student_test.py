"""Mistakes with a student's folder: damaged, of another kind, or asked for what it has not."""

import json
import shutil

import pytest

PREDICT = ("predict", "--mesh", "data=1", "--dataset", "eval.jsonl", "--output", "answers.jsonl")
EVALUATE = ("evaluate", "--mesh", "data=1", "--dataset", "eval.jsonl")


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("absent", ["absent", "is no folder", "no model in the registry", "--model-dir"]),
    ("runs/absent", ["runs/absent", "no config.gin", "--model-dir"]),
    ("train.jsonl", ["train.jsonl", "no config.gin"]),
    (".", ["no config.gin"]),
    ("gs://bucket/student", ["gs://bucket/student", "on this machine"]),
  ],
)
@pytest.mark.parametrize("command", [PREDICT, EVALUATE])
def test_no_student(refuses, command, name, says):
  refuses(*command, "--model", name, says=says)


@pytest.mark.parametrize(
  ("flags", "says"),
  [
    (["--dataset", "absent.jsonl"], ["absent.jsonl", "no such file"]),
    (["--output", "absent/answers.jsonl"], ["absent/answers.jsonl", "folder that exists"]),
    (["--output", "student"], ["student", "a directory"]),
    (["--batch-size", "0"], ["--batch-size", "x>=1", "dss predict --help"]),
    (["--max-output-tokens", "0"], ["--max-output-tokens", "x>=1"]),
    (["--mesh", "data=3"], ["data=3", "divisor of 4"]),
  ],
)
def test_predict(finished, refuses, flags, says):
  refuses(*PREDICT, "--model", "student", *flags, says=says, workshop=finished)


@pytest.mark.parametrize(
  ("flags", "says"),
  [
    ([], ["neither of --dataset and --task"]),
    (["--dataset", "eval.jsonl", "--task", "svamp"], ["both of --dataset and --task"]),
    (["--task", "svamp"], ["--task svamp", "--data-dir"]),
    (["--dataset", "eval.jsonl", "--data-dir", "."], ["--data-dir .", "--task"]),
    (["--dataset", "eval.jsonl", "--split", "train"], ["--split train", "--task"]),
    (["--dataset", "bare.jsonl"], ["bare", 'no row has "output_text"', "label"]),
    (["--dataset", "eval.jsonl", "--html", "absent/p.html"], ["absent/p.html", "folder that"]),
    (["--dataset", "eval.jsonl", "--model", "absent"], ["absent", "no model in the registry"]),
  ],
)
def test_evaluate(finished, refuses, flags, says):
  finished.write("bare.jsonl", [{"input_text": "Add 1 and 2."}])
  refuses("evaluate", "--model", "student", *flags, says=says, workshop=finished)


def damaged_json(folder):
  (folder / "model.json").write_text("{")


def no_text(folder):
  (folder / "model.json").write_bytes(b"\xff\xfe")


def a_list(folder):
  (folder / "model.json").write_text("[]")


def without_prefixes(folder):
  card = json.loads((folder / "model.json").read_text())
  del card["prefixes"]["rationale"]
  (folder / "model.json").write_text(json.dumps(card))


def other_config(folder):
  (folder / "config.gin").write_text("RunConfig.sead = 1\n")


CARDS = {
  damaged_json: ["model.json", "JSON", "from a copy"],
  no_text: ["model.json", "JSON", "from a copy"],
  a_list: ["model.json", '"student"', "from a copy"],
  without_prefixes: ["model.json", '"prefixes.rationale"', "from a copy"],
  other_config: ["config.gin:1", "'RunConfig.sead'"],
}


@pytest.mark.parametrize(("damage", "says"), CARDS.items())
def test_a_damaged_card(with_student, refuses, damage, says):
  damage(with_student.folder / "student")
  refuses(*PREDICT, "--model", "student", says=says, workshop=with_student)
  flags = with_student.flags("student", "--train-steps", "6")
  refuses("distill", *flags, says=says, workshop=with_student)


def test_a_missing_card(with_student, refuses):
  (with_student.folder / "student" / "model.json").unlink()
  says = ["model.json: is missing", "training command again"]
  refuses(*PREDICT, "--model", "student", says=says, workshop=with_student)
  with_student.train("student")
  assert with_student(*PREDICT, "--model", "student").code == 0


def test_without_a_checkpoint(with_student, refuses):
  shutil.rmtree(with_student.folder / "student" / "checkpoints")
  says = ["student: has no checkpoint yet", "same command"]
  refuses(*PREDICT, "--model", "student", says=says, workshop=with_student)
  refuses(*EVALUATE, "--model", "student", says=says, workshop=with_student)
  says = ["--initial-checkpoint student", "has no checkpoint yet"]
  flags = with_student.flags("new", "--initial-checkpoint", "student")
  refuses("distill", *flags, says=says, workshop=with_student)


@pytest.mark.parametrize(
  ("file", "place", "as_initial"),
  [
    ("4/metrics/metrics", "checkpoints", "checkpoints: cannot be restored"),
    # An initial checkpoint's arrays are read without it.
    ("4/params/_METADATA", "checkpoints/4", None),
    ("4/params/manifest.ocdbt", "checkpoints/4", "checkpoints/4/params: its arrays cannot be"),
  ],
)
def test_a_damaged_checkpoint(with_student, refuses, capfd, file, place, as_initial):
  path = with_student.folder / "student" / "checkpoints" / file
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  says = [f"student/{place}: cannot be restored", "a copy of it", "remove it"]
  refuses(*PREDICT, "--model", "student", says=says, workshop=with_student)
  flags = with_student.flags("student", "--train-steps", "6")
  refuses("distill", *flags, says=says, workshop=with_student)
  flags = with_student.flags("new", "--initial-checkpoint", "student")
  if as_initial is not None:
    says = [f"--initial-checkpoint student/{as_initial}", "copy"]
    refuses("distill", *flags, says=says, workshop=with_student)
  assert "Traceback" not in capfd.readouterr().err


def test_checkpoints_of_another_size(with_student, refuses):
  config = with_student.folder / "student" / "config.gin"
  config.write_text(config.read_text().replace("mlp_dim = 16", "mlp_dim = 32"))
  says = ["student/checkpoints/4: cannot be restored", "shape"]
  refuses(*PREDICT, "--model", "student", says=says, workshop=with_student)


def test_an_initial_checkpoint_of_another_size(finished, refuses):
  flags = finished.flags("new", "--initial-checkpoint", "student", "--student", "mini")
  says = ["--initial-checkpoint student", "(8,)", "--student mini", "(256,)"]
  refuses("distill", *flags, says=says, workshop=finished)


def test_an_initial_checkpoint_that_is_none(finished, refuses):
  says = ["--initial-checkpoint", "--model-dir"]
  flags = finished.flags("new", "--initial-checkpoint", "student/checkpoints")
  refuses("distill", *flags, says=says, workshop=finished)


def test_an_initial_checkpoint_with_another_vocabulary(with_student, pieces, refuses):
  flags = with_student.flags("new", "--initial-checkpoint", "student", "--vocabulary", pieces)
  says = ["--initial-checkpoint student", "vocabulary bytes", "--vocabulary"]
  refuses("distill", *flags, says=says, workshop=with_student)


def test_a_vocabulary_that_is_not_the_student_s(with_words, refuses):
  copy = with_words.folder / "student" / "sentencepiece.model"
  copy.write_bytes(copy.read_bytes() + b"\x12\x00")
  says = ["student/sentencepiece.model", "not the vocabulary", "a copy"]
  refuses(*PREDICT, "--model", "student", says=says, workshop=with_words)
  copy.write_bytes(b"none")
  says = ["student/sentencepiece.model", "damaged", "a copy"]
  refuses(*PREDICT, "--model", "student", says=says, workshop=with_words)
  copy.unlink()
  says = ["student/sentencepiece.model", "missing", "a copy"]
  refuses(*PREDICT, "--model", "student", says=says, workshop=with_words)


def test_a_student_asked_for_what_it_never_learnt(with_student, refuses):
  config = with_student.folder / "student" / "config.gin"
  text = config.read_text()
  config.write_text(text.replace("LossConfig.alpha = 0.5", "LossConfig.alpha = 1.0"))
  says = ["student: was trained on labels alone", "--explain", "dss distill"]
  refuses(*PREDICT, "--model", "student", "--explain", says=says, workshop=with_student)
  config.write_text(text.replace("LossConfig.alpha = 0.5", "LossConfig.alpha = 0.0"))
  says = ["student: was trained on rationales alone", "--alpha"]
  refuses(*PREDICT, "--model", "student", says=says, workshop=with_student)
