"""Loading of task files: shipped ones, a user's own, those of a wheel, and invalid ones."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from dss_jax.data.task_files import (
  Split,
  TaskDefinition,
  accuracy,
  is_no_label,
  load_task,
  shipped_tasks,
)
from dss_jax.errors import UserError

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent

TASK_FILE = """
from dss_jax.data.task_files import Answer, Split, TaskDefinition, accuracy

TASK = TaskDefinition(
  name="mine", splits={"train": Split("rows.jsonl")},
  to_row=lambda published: {"input_text": published["q"]},
  parse_answer=lambda text: Answer(text, text), same_label=str.__eq__, metric=accuracy,
)
"""


def test_shipped_tasks_load_under_their_names():
  assert set(shipped_tasks()) >= {"cqa", "esnli", "svamp"}
  for name in shipped_tasks():
    task = load_task(name)
    assert task.name == name
    assert set(task.splits) == {"train", "validation", "test"}


def test_shipped_task_files_are_short():
  for path in shipped_tasks().values():
    assert len(path.read_text().splitlines()) <= 60, path


def test_a_users_file_shadows_no_module(tmp_path):
  path = tmp_path / "json.py"
  path.write_text(TASK_FILE)
  assert load_task(str(path)).name == "mine"
  assert "dumps" in dir(sys.modules["json"])
  path.write_text(TASK_FILE.replace('"mine"', '"changed"'))
  assert load_task(str(path)).name == "changed"


def test_a_users_file_may_define_dataclasses(tmp_path):
  path = tmp_path / "typed.py"
  path.write_text(
    "from __future__ import annotations\nimport dataclasses\n\n"
    "@dataclasses.dataclass\nclass Kept:\n  number: int\n" + TASK_FILE.replace("__future__", "")
  )
  assert load_task(str(path)).name == "mine"


@pytest.mark.parametrize(
  ("content", "line", "words"),
  [
    ("x = 1", "", "the task file defines no TASK; set TASK = TaskDefinition(...)"),
    ("TASK = {}", "", "has a TASK of type dict"),
    ("import os\n\nraise ValueError('a\\nb')", ":3", "raised ValueError: a b; correct"),
    ("x = 1\nx = (", ":2", "raised SyntaxError"),
    ("import no_such_module_here", ":1", "raised ModuleNotFoundError"),
    ("import sys\nsys.exit(3)", ":2", "raised SystemExit: 3"),
    (TASK_FILE.replace('"mine"', '"a b"'), ":4", "name 'a b' must be letters"),
    (TASK_FILE.replace('"train"', '"dev"'), ":4", "splits ['dev'] must be some of"),
  ],
)
def test_the_message_for_an_invalid_file(tmp_path, content, line, words):
  path = tmp_path / "bad.py"
  path.write_text(content)
  with pytest.raises(UserError) as caught:
    load_task(str(path))
  message = str(caught.value)
  assert message.startswith(f"{path}{line}: ")
  assert words in message
  assert "\n" not in message
  assert "_dss_jax_task_bad" not in sys.modules or line == ""


@pytest.mark.parametrize("name", ["sqa", "", "..", "__init__", "cqa "])
def test_the_message_for_an_unknown_name_lists_the_shipped_tasks(name):
  with pytest.raises(
    UserError, match=f"task {name!r} does not exist; give one of cqa, esnli, svamp"
  ):
    load_task(name)


@pytest.mark.parametrize("path", ["/no/such/task.py", "./cqa", "task.py"])
def test_a_missing_file_is_named(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=f"^{path}: there is no such task file; give the path"):
    load_task(path)


def test_a_file_that_is_not_python_is_refused(tmp_path):
  path = tmp_path / "task.json"
  path.write_text("{}")
  with pytest.raises(UserError, match=r"rename it to end in \.py"):
    load_task(str(path))


def test_split_counts_rows_from_zero_over_the_file():
  split = Split("rows.jsonl", start=2, stop=6, keep=lambda index: index % 2 == 0)
  assert [index for index in range(10) if split.has(index)] == [2, 4]
  assert all(map(Split("rows.jsonl").has, range(10)))


def test_accuracy_of_unequal_strings():
  assert accuracy(["a", "b", "c"], ["a", "b ", "C"]) == {"accuracy": pytest.approx(100 / 3)}


def test_a_definition_needs_a_split():
  with pytest.raises(ValueError, match="splits"):
    TaskDefinition("x", {}, dict, str, str.__eq__, accuracy)


def test_tasks_of_a_wheel(tmp_path):
  """An installed wheel finds its tasks, and adds no package `tasks` to site-packages."""
  checkout = tmp_path / "checkout"
  checkout.mkdir()
  for name in ("setup.py", "pyproject.toml", "README.md"):
    shutil.copy(REPOSITORY / name, checkout)
  for name in ("dss_jax", "tasks", "gin_configs"):
    shutil.copytree(
      REPOSITORY / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
    )
  build = "from setuptools import build_meta; print(build_meta.build_wheel('wheels'))"
  subprocess.run([sys.executable, "-c", build], cwd=checkout, check=True, capture_output=True)
  (wheel,) = (checkout / "wheels").glob("*.whl")
  site = tmp_path / "site"
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(site)
  # Otherwise the tasks of the copied checkout could be found.
  shutil.rmtree(checkout)
  assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"dss_jax"}
  code = (
    "import dss_jax; from dss_jax.data.task_files import load_task, shipped_tasks\n"
    "print(dss_jax.__file__)\n"
    "print(load_task('svamp').name, *(path for path in shipped_tasks().values()))\n"
  )
  run = subprocess.run(
    [sys.executable, "-c", code],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(site)},
    check=True,
    capture_output=True,
    text=True,
  )
  package, tasks = run.stdout.splitlines()
  assert package == str(site / "dss_jax" / "__init__.py")
  folder = site / "dss_jax" / "tasks"
  assert tasks.split() == ["svamp", *(str(folder / f"{n}.py") for n in ("cqa", "esnli", "svamp"))]


@pytest.mark.parametrize(
  ("value", "is_none"),
  [(None, True), (-1, True), (-1.0, True), (float("nan"), True), ("", True), (" ", True),
   ("-", True), ("-1", True), ("\u200b", True), (0, False), (1, False), (False, False),
   (True, False), ("0", False), ("no", False), ("- 1", False)],
)  # fmt: skip
def test_values_that_say_that_there_is_no_label(value, is_none):
  assert is_no_label(value) is is_none


@pytest.mark.parametrize(
  "change",
  [{"splits": {"train": "train.jsonl"}}, {"to_row": None}, {"metric": "accuracy"}, {"name": 3},
   {"splits": {}}, {"splits": {"dev": Split("x")}}],
)  # fmt: skip
def test_a_definition_of_other_types_is_refused(change):
  fields = {
    "name": "mine",
    "splits": {"train": Split("train.jsonl")},
    "to_row": dict,
    "parse_answer": str,
    "same_label": str.__eq__,
    "metric": accuracy,
  }
  assert TaskDefinition(**fields).name == "mine"
  with pytest.raises(ValueError, match=r"must be|each of splits"):
    TaskDefinition(**{**fields, **change})


def test_a_split_of_other_types_is_refused():
  for arguments in ({"rows": None}, {"start": "1"}, {"stop": 1.5}, {"keep": [1]}, {"answers": 1}):
    with pytest.raises(ValueError, match="Split"):
      Split(**{"rows": "x", **arguments})
