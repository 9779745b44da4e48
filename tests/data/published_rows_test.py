"""The rows of a published file as a user's to_row makes them, with all that it may give."""

import json

import pytest

from dss_jax.data.published_rows import PublishedRows
from dss_jax.data.task_files import Answer, Split, TaskDefinition, accuracy
from dss_jax.errors import UserError


def task(to_row):
  splits = {"train": Split("rows.jsonl")}
  return TaskDefinition(
    "toy", splits, to_row, lambda text: Answer(text, text), str.__eq__, accuracy
  )


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text(
    "".join(json.dumps({"q": f"q{number}", "a": number}) + "\n" for number in range(4))
  )
  return path


def test_rows_keep_their_numbers_and_are_spoken_of_once(path, capsys):
  rows = PublishedRows(task(lambda row: None if row["a"] == 1 else {"input_text": row["q"]}), path)
  expected = [(number, {"input_text": f"q{number}"}) for number in (0, 2, 3)]
  assert list(rows.numbered()) == expected
  assert list(rows) == list(rows) == [row for _, row in expected]
  assert capsys.readouterr().err == (
    f"{path}: 1 row left out, as the task's to_row says (line 2)\n"
    f"{path}: 3 rows without a label (lines 1, 3, 4)\n"
  )


def test_a_text_that_is_none_is_absent(path):
  row = {"input_text": "a", "output_text": None, "rationale": None, "id": None}
  assert next(iter(PublishedRows(task(lambda _: row), path))) == {"input_text": "a", "id": None}


@pytest.mark.parametrize(
  ("to_row", "words"),
  [
    (lambda row: ["a"], r"gives a list; it must give a dict"),
    (lambda row: (yield {"input_text": "a"}), r"gives a generator; it must give a dict"),
    (lambda row: "a", r"\(.*published_rows_test.py:\d+\) gives a str"),
    (lambda row: {"input_text": None}, '"input_text" is None; it must be text'),
    (lambda row: {}, '"input_text" is None; it must be text'),
    (lambda row: {"input_text": "a", "id": {1, 2}}, "cannot be written as JSON"),
    (lambda row: {"input_text": "a", "id": float("nan")}, "cannot be written as JSON"),
    (lambda row: {"input_text": row["x"]}, r"KeyError: 'x', in .*published_rows_test.py:\d+\)"),
    (lambda row: int("a"), r"ValueError: invalid literal .* in .*published_rows_test.py:\d+\)"),
    (lambda row: exit(), r"cannot read this row .*SystemExit"),
  ],
)
def test_what_is_no_row_is_one_sentence_with_both_places(path, to_row, words):
  with pytest.raises(UserError, match=words) as caught:
    list(PublishedRows(task(to_row), path))
  assert str(caught.value).startswith(f"{path}:1: ")
  assert "\n" not in str(caught.value)


def test_a_file_whose_rows_are_all_left_out(path):
  with pytest.raises(UserError, match="no rows; give a file of task toy"):
    list(PublishedRows(task(lambda row: None), path))
