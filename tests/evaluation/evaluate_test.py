"""The rows and the metric that a student is evaluated with, and what answers are compared with.

No model is loaded.
"""

import json
import pathlib
from types import SimpleNamespace

import pytest

from dss_jax.data.task_files import accuracy
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.errors import UserError
from dss_jax.evaluation.evaluate import label_figures, source_for

TASK_FILE = """
from dss_jax.data.task_files import Answer, Split, TaskDefinition

TASK = TaskDefinition(
  name="mine",
  splits={"train": Split("train.jsonl"), "test": Split("test.jsonl", "answers.jsonl")},
  to_row=lambda published: {"input_text": published["q"], "output_text": published["a"]},
  parse_answer=lambda text: Answer(text, text),
  same_label=str.__eq__,
  metric=lambda targets, predictions: {"mine": 7.0},
)
"""


@pytest.fixture
def folder(tmp_path):
  """Holds a task file, its files without the recorded answers, and a file of rows."""
  (tmp_path / "mine.py").write_text(TASK_FILE)
  for name in ("train", "test"):
    (tmp_path / f"{name}.jsonl").write_text(json.dumps({"q": name, "a": "yes"}) + "\n")
  (tmp_path / "rows.jsonl").write_text('{"input_text": "x", "output_text": "y"}\n')
  return tmp_path


def student(task: pathlib.Path | None, teacher: str | None = "openai:one"):
  """A stand-in for a student that was trained on a task."""
  data = SimpleNamespace(task=None if task is None else str(task))
  return SimpleNamespace(config=SimpleNamespace(data=data, teacher=SimpleNamespace(name=teacher)))


def test_a_file_is_evaluated_with_the_metric_of_the_students_task(folder):
  source = source_for(student(folder / "mine.py"), str(folder / "rows.jsonl"), None, None, None)
  assert source.summary.labelled == 1
  assert source.metric(["a"], ["b"]) == {"mine": 7.0}
  source = source_for(student(None), str(folder / "rows.jsonl"), None, None, None)
  assert source.metric(["a"], ["a"]) == {"accuracy": 100.0}


def test_accuracy_with_a_warning_if_the_task_file_is_missing(folder, capsys):
  source = source_for(student(folder / "gone.py"), str(folder / "rows.jsonl"), None, None, None)
  assert source.metric(["a", "b"], ["a", "c"]) == {"accuracy": 50.0}
  message = capsys.readouterr().err
  assert "warning: labels are compared exactly" in message
  assert "gone.py" in message


def test_a_task_is_evaluated_on_its_test_split_unless_another_is_given(folder):
  for split, expected in ((None, "test"), ("train", "train")):
    source = source_for(student(None), None, str(folder / "mine.py"), str(folder), split)
    assert [row["input_text"] for row in source.rows] == [expected]
    assert source.name == f"mine_{expected}"


def test_recorded_answers_are_needed_only_without_an_own_teacher(folder):
  arguments = (None, str(folder / "mine.py"), str(folder), "test")
  assert source_for(student(None, "openai:one"), *arguments).summary.rows == 1
  with pytest.raises(UserError, match=r"answers\.jsonl"):
    source_for(student(None, None), *arguments)


def test_a_student_that_is_always_right_matches_what_its_vocabulary_can_write(
  small_vocabulary, capsys
):
  labels = ["red box ", "red  box", "{red}", "１２", "blue"]
  answers = [small_vocabulary.decode(small_vocabulary.encode(label)) for label in labels]
  assert label_figures(labels, answers, small_vocabulary, accuracy) == {
    "labels_changed_by_vocabulary": 4,
    "exact_match": 1.0,
    "task_metrics": {"accuracy": 100.0},
    "as_given": {"exact_match": 0.2, "task_metrics": {"accuracy": 20.0}},
  }
  message = capsys.readouterr().err
  assert (
    "4 of 5 labels cannot be written with the student's vocabulary as they are: \"red box "
    in (message)
  )
  assert '"red box " becomes "red box"' in message


def test_labels_that_can_be_written_are_compared_once(small_vocabulary, capsys):
  for vocabulary in (small_vocabulary, load_vocabulary("bytes")):
    assert label_figures(["red", "blue"], ["red", "blue "], vocabulary, accuracy) == {
      "labels_changed_by_vocabulary": 0,
      "exact_match": 0.5,
      "task_metrics": {"accuracy": 50.0},
    }
  assert capsys.readouterr().err == ""


def test_a_metric_that_parses_labels_gets_them_as_they_are_where_it_must(small_vocabulary, capsys):
  def same_json(targets, predictions):
    return {"objects": sum(len(json.loads(target)) for target in targets)}

  labels = ['{"red": 1}', '{"blue": 2}']
  figures = label_figures(labels, labels, small_vocabulary, same_json)
  assert figures["task_metrics"] == figures["as_given"]["task_metrics"] == {"objects": 2}
  assert figures["exact_match"] == 0.0
  assert "the task's metric cannot read the labels" in capsys.readouterr().err
