"""Users' mistakes: one sentence on standard error, exit code 2, and no file written."""

import fcntl
import gzip
import sys
import urllib.error
import urllib.request

import pytest

from dss_jax.terminal import printable

FLAGS = {
  "an unknown student": (["--student", "giant"], ["--student", "'giant'", "tiny", "xxl"]),
  "no steps": (["--train-steps", "0"], ["--train-steps", "0", "at least 1"]),
  "half a step": (["--train-steps", "1.5"], ["--train-steps", "'1.5'", "integer", "--help"]),
  "a negative batch": (["--batch-size", "-1"], ["--batch-size", "-1", "at least 1"]),
  "alpha above 1": (["--alpha", "2"], ["--alpha", "2.0", "from 0 to 1"]),
  "alpha not a number": (["--alpha", "nan"], ["--alpha", "nan", "finite"]),
  "an infinite learning rate": (
    ["--learning-rate-multiplier", "inf"],
    ["--learning-rate-multiplier", "inf", "finite"],
  ),
  "a seed too large": (["--seed", str(2**70)], ["--seed", str(2**70), "4294967295"]),
  "too few tokens": (["--max-output-tokens", "1"], ["--max-output-tokens", "1", "at least 2"]),
  "an unknown mesh": (["--mesh", "all"], ["--mesh", "'all'", "data=N,model=M"]),
  "an unknown mesh axis": (["--mesh", "data=1,x=2"], ["--mesh", "'x=2'", "data=N,model=M"]),
  "more devices than there are": (["--mesh", "data=4,model=4"], ["--mesh", "16", "there are 8"]),
  "a data axis that does not divide": (["--mesh", "data=3"], ["data=3", "4 examples", "divisor"]),
  "an unknown flag": (["--epochs", "3"], ["--epochs", "dss distill --help"]),
  "an unknown label source": (
    ["--label-source", "silver"],
    ["--label-source", "'silver'", "'gold', 'teacher'"],
  ),
  "a label source for a file": (
    ["--label-source", "teacher"],
    ["--label-source teacher", "--task"],
  ),
  "a task's folder with a file": (["--data-dir", "."], ["--data-dir", "--task"]),
  "a file and a task": (
    ["--task", "svamp", "--data-dir", "."],
    ["both of --dataset and --task", "TRAIN.jsonl", "--data-dir"],
  ),
  "a missing vocabulary": (
    ["--vocabulary", "no.model"],
    ["vocabulary no.model", "no such file", "--vocabulary bytes"],
  ),
  "a vocabulary that is a folder": (["--vocabulary", "."], ["vocabulary .", "a directory"]),
  "a vocabulary without a name": (["--vocabulary", ""], ["vocabulary", "empty name"]),
  "a vocabulary of another format": (
    ["--vocabulary", "train.jsonl"],
    ["vocabulary train.jsonl", "not a SentencePiece model", "--vocabulary bytes"],
  ),
  "a missing initial checkpoint": (
    ["--initial-checkpoint", "nowhere"],
    ["--initial-checkpoint nowhere", "--model-dir"],
  ),
}


@pytest.mark.parametrize(("flags", "says"), FLAGS.values(), ids=FLAGS)
def test_wrong_flags(dss, refuses, flags, says):
  refuses("distill", *dss.flags("new", *flags), says=says)


def test_missing_data(dss, refuses):
  refuses(
    "distill", *dss.TINY, "--model-dir", "new", says=["neither of --dataset and --task", "--task"]
  )


def test_missing_model_dir(dss, refuses):
  refuses("distill", "--dataset", "train.jsonl", says=["--model-dir", "dss distill --help"])


LABELLED = b'{"input_text": "a", "output_text": "b"}\n'
EXPLAINED = b'{"input_text": "a", "rationale": "b"}\n'
DATA = {
  "missing": (None, ["no such file"]),
  "a folder": ("folder", ["a directory"]),
  "empty": (b"", ["no rows", '{"input_text": "..."}']),
  "not UTF-8": (b'{"input_text": "caf\xe9"}\n', [":1:", "UTF-8", "0xe9"]),
  "UTF-16": ('{"input_text": "a"}'.encode("utf-16"), [":1:", "UTF-16", "UTF-8"]),
  "not JSON": (LABELLED + b"hello\n", [":2:", "not JSON", "hello"]),
  "a list": (b"[1]\n", [":1:", "an array", "one object a line"]),
  "without an input": (b'{"prompt": "a"}\n', [":1:", '"input_text" is missing', '"prompt"']),
  "with an empty label": (b'{"input_text": "a", "output_text": ""}\n', ['"output_text" is empty']),
  "without rationales": (LABELLED, ['no row has "rationale"', "dss tune"]),
  "without labels": (EXPLAINED, ['no row has "output_text"', "label some rows"]),
  "without either": (b'{"input_text": "a"}\n', ['no row has "output_text"']),
}


@pytest.mark.parametrize(("content", "says"), DATA.values(), ids=DATA)
def test_wrong_training_data(dss, refuses, content, says):
  if content == "folder":
    (dss.folder / "rows.jsonl").mkdir()
  elif content is not None:
    (dss.folder / "rows.jsonl").write_bytes(content)
  refuses("distill", *dss.flags("new", "--dataset", "rows.jsonl"), says=["rows.jsonl", *says])


@pytest.mark.parametrize(
  "content", [b"plain text", gzip.compress(LABELLED * 99)[:-20]], ids=["not gzip", "cut off"]
)
def test_a_damaged_archive(dss, refuses, content):
  (dss.folder / "rows.jsonl.gz").write_bytes(content)
  flags = dss.flags("new", "--dataset", "rows.jsonl.gz")
  refuses("distill", *flags, says=["rows.jsonl.gz:", "gzip", "compress or copy"])


def test_many_bad_lines_are_reported_together(dss):
  (dss.folder / "rows.jsonl").write_bytes(b"[]\n" * 30)
  outcome = dss("distill", *dss.flags("new", "--dataset", "rows.jsonl"))
  assert outcome.code == 2
  assert len(outcome.err.splitlines()) == 21
  assert outcome.err.splitlines()[19].startswith("rows.jsonl:20: ")
  assert "10 more" in outcome.err.splitlines()[20]


@pytest.mark.parametrize(
  ("command", "content", "says"),
  [
    ("distill", EXPLAINED, ['no row has "output_text"', "evaluat"]),
    ("tune", EXPLAINED, ['no row has "output_text"', "evaluat"]),
    ("distill", b"", ["no rows"]),
  ],
)
def test_wrong_evaluation_data(dss, refuses, command, content, says):
  (dss.folder / "judge.jsonl").write_bytes(content)
  flags = dss.flags("new", "--eval-dataset", "judge.jsonl")
  refuses(command, *flags, says=["judge.jsonl", *says])


def test_a_url_whose_driver_is_not_installed(dss, refuses, monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  flags = dss.flags("new", "--dataset", "gs://bucket/rows.jsonl")
  refuses("distill", *flags, says=["gs://bucket/rows.jsonl", "pip install gcsfs"])


def test_the_default_vocabulary_without_a_network(dss, refuses, monkeypatch):
  def no_network(*arguments, **options):
    raise urllib.error.URLError("Name or service not known")

  monkeypatch.setattr(urllib.request, "urlopen", no_network)
  flags = ["--student", "tiny", "--dataset", "train.jsonl", "--model-dir", "new"]
  refuses("distill", *flags, says=["gs://t5-data/", "Name or service", "--vocabulary FILE"])


TASKS = {
  "unknown": (None, "squad", ["'squad'", "svamp", ".py"]),
  "missing": (None, "mine.py", ["mine.py", "TASK"]),
  "without TASK": ("x = 1\n", "mine.py", ["mine.py", "TASK = TaskDefinition"]),
  "TASK of another type": ("TASK = 3\n", "mine.py", ["mine.py", "int", "TaskDefinition"]),
  "raising": ("x = 1\n\ny = x / 0\n", "mine.py", ["mine.py:3", "division by zero"]),
  "not Python": ("def (\n", "mine.py", ["mine.py:1", "invalid syntax"]),
}


@pytest.mark.parametrize(("text", "name", "says"), TASKS.values(), ids=TASKS)
def test_wrong_tasks(dss, refuses, text, name, says):
  if text is not None:
    (dss.folder / "mine.py").write_text(text)
  flags = [*dss.TINY, "--model-dir", "new", "--task", name, "--data-dir", "."]
  refuses("distill", *flags, says=says)


def test_a_task_without_its_files(dss, refuses):
  flags = [*dss.TINY, "--model-dir", "new", "--task", "svamp"]
  refuses("distill", *flags, says=["--task svamp", "--data-dir"])
  flags += ["--data-dir", "nowhere"]
  refuses("distill", *flags, says=["nowhere/train.jsonl", "svamp", "--data-dir"])


GIN = {
  "without a value": ("RunConfig.seed =\n", ["mine.gin:1", "not gin"]),
  "a text without quotes": ("SEED = one\n", ["mine.gin:1", "'one'", "quotes"]),
  "an unknown binding": ("RunConfig.sead = 1\n", ["mine.gin:1", "'RunConfig.sead'", ".seed"]),
  "an unused macro": ("\nSEEDS = 1\n", ["mine.gin:2", "'SEEDS'", "SEED?"]),
  "an undefined macro": ("RunConfig.seed = %SEEDS\n", ["mine.gin:1", "%SEEDS", "SEED?"]),
  "an unset REQUIRED": ("RunConfig.seed = %gin.REQUIRED\n", ["mine.gin:1", "required"]),
  "another type": ("SEED = '1'\n", ["mine.gin:1", "RunConfig.seed = '1'", "a whole number"]),
  "an import": ("import os\n", ["mine.gin:1", "imports code", "remove"]),
  "a call": ("SEED = @os.getpid()\n", ["mine.gin:1", "would call code", "plain value"]),
  "a circular macro": ("SEED = %A\nA = %SEED\n", ["defined by itself"]),
  "a file that includes itself": ("include 'mine.gin'\n", ["mine.gin", "includes itself"]),
  "another student": ("include 'models/mini.gin'\n", ["--student tiny", "no effect", "'mini'"]),
}


@pytest.mark.parametrize(("text", "says"), GIN.values(), ids=GIN)
def test_wrong_gin_files(dss, refuses, text, says):
  (dss.folder / "mine.gin").write_text(text)
  refuses("distill", *dss.flags("new", "--gin-file", "mine.gin"), says=says)


def test_a_missing_gin_file(dss, refuses):
  flags = dss.flags("new", "--gin-file", "absent.gin")
  refuses("distill", *flags, says=["'absent.gin'", "give the path"])


def test_a_flag_without_effect(dss, refuses):
  (dss.folder / "mine.gin").write_text("LossConfig.alpha = 0.25\n")
  flags = dss.flags("new", "--gin-file", "mine.gin", "--alpha", "0.75")
  refuses("distill", *flags, says=["--alpha", "no effect", "LossConfig.alpha", "mine.gin:1"])


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    ([], ["--gin_file=gin_configs/runs/distill.gin"]),
    (["--gin_file=runs/distill.gin"], ["MODEL_DIR is required", "--gin.MODEL_DIR"]),
    (["--gin_file=runs/distill.gin", "--gin.MODEL_DIR=new"], ["--gin.MODEL_DIR", "\"'text'\""]),
    (["--gin_file=runs/distill.gin", "--model-dir=new"], ["--model-dir=new", "--gin.NAME=VALUE"]),
  ],
)
def test_wrong_arguments_of_train(refuses, arguments, says):
  refuses("train", *arguments, says=says)


FOLDERS = {
  "a file": ("train.jsonl", ["is a file", "folder"]),
  "below a file": ("train.jsonl/new", ["cannot be written", "another folder"]),
  "a folder with other files": ("photos", ["holds 'beach.jpg'", "new or empty folder"]),
  "a URL": ("gs://bucket/new", ["is a URL", "local folder"]),
  "empty": ("", ["empty name"]),
  "a name that is too long": ("x" * 300, ["cannot be written", "too long"]),
  "a null byte": ("\0", ["cannot be written", "embedded null"]),
}


@pytest.mark.parametrize(("name", "says"), FOLDERS.values(), ids=FOLDERS)
def test_wrong_model_dirs(dss, refuses, name, says):
  (dss.folder / "photos").mkdir()
  (dss.folder / "photos" / "beach.jpg").touch()
  refuses("distill", *dss.flags(name), says=[printable(f"--model-dir {name}"), *says])


def test_the_folder_of_another_run(with_student, refuses):
  flags = with_student.flags("student", "--alpha", "0.7", "--seed", "3")
  says = ["LossConfig.alpha was 0.5, is 0.7", "RunConfig.seed was 0, is 3", "to resume"]
  refuses("distill", *flags, says=says, workshop=with_student)
  flags = with_student.flags("student", "--train-steps", "2")
  says = ["train_steps was 4, is 2"]
  refuses("distill", *flags, says=says, workshop=with_student)


@pytest.mark.parametrize(("file", "name"), [("train.jsonl", "train"), ("eval.jsonl", "evaluation")])
def test_the_folder_of_a_run_on_other_data(with_student, refuses, file, name):
  path = with_student.folder / file
  path.write_text(path.read_text().replace("Add", "Sum", 1))
  flags = with_student.flags("student", "--train-steps", "6")
  refuses("distill", *flags, says=[f"the {name} data are not"], workshop=with_student)


def test_the_folder_of_a_running_run(with_student, refuses):
  with (with_student.folder / "student" / ".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    flags = with_student.flags("student", "--train-steps", "6")
    refuses("distill", *flags, says=["another run is writing"], workshop=with_student)


SWEEPS = {
  "without a grid": ("", ["SweepConfig.grid"]),
  "an empty grid": ("SweepConfig.grid = {}\n", ["grid.gin", "no values"]),
  "a name without values": ("SweepConfig.grid = {'SEED': []}\n", ["no values for SEED"]),
  "a value that is not a list": ("SweepConfig.grid = {'SEED': 3}\n", ["grid.gin:1", "list"]),
  "an unknown name": ("SweepConfig.grid = {'SEEDS': [1]}\n", ["'SEEDS'", "SEED?"]),
  "an unknown student": ("SweepConfig.grid = {'STUDENT': ['big']}\n", ["grid.gin", "'big'"]),
  "a value out of bounds": ("SweepConfig.grid = {'ALPHA': [0.5, 2.0]}\n", ["2.0", "from 0 to 1"]),
  "a value twice": ("SweepConfig.grid = {'SEED': [1, 2, 1]}\n", ["SEED", "1 twice"]),
  "the folder": ("SweepConfig.grid = {'MODEL_DIR': ['a']}\n", ["MODEL_DIR", "--model-dir"]),
}


@pytest.mark.parametrize(("text", "says"), SWEEPS.values(), ids=SWEEPS)
def test_wrong_sweeps(dss, refuses, text, says):
  (dss.folder / "grid.gin").write_text(text)
  refuses("sweep", "grid.gin", *dss.flags("new"), says=says)


def test_a_missing_sweep(dss, refuses):
  refuses("sweep", "absent.gin", *dss.flags("new"), says=["'absent.gin'", "give the path"])


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (["absent.jsonl"], ["absent.jsonl", "no such file"]),
    (["train.jsonl", "--eval-dataset", "absent.jsonl"], ["absent.jsonl", "no such file"]),
    (["train.jsonl", "--vocabulary", "absent"], ["vocabulary absent", "no such file"]),
    ([], ["FILE", "dss validate --help"]),
  ],
)
def test_wrong_arguments_of_validate(refuses, arguments, says):
  refuses("validate", *arguments, says=says)


@pytest.mark.parametrize("command", ["stanza", "--flag"])
def test_an_unknown_command(refuses, command):
  refuses(command, says=[command, "dss --help"])
