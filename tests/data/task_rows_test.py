"""Rows of a task: sources of labels and rationales, counts, and files that do not match."""

import gzip
import json

import pytest

from dss_jax.data.task_files import Answer, Split, TaskDefinition, UnparsableAnswer, accuracy
from dss_jax.data.task_rows import load_rows
from dss_jax.errors import UserError


def _to_row(published):
  row = {"input_text": published["q"], "level": published.get("level", 1)}
  return {**row, **({"output_text": published["a"]} if "a" in published else {})}


def _parse_answer(text):
  rationale, found, label = text.partition(" => ")
  if not found:
    raise UnparsableAnswer("no arrow")
  return Answer(rationale, None if "or" in label else label)


def _task(parse_answer=_parse_answer, to_row=_to_row, **splits):
  splits = splits or {
    "train": Split("rows.jsonl", "texts.jsonl"),
    "test": Split("rows.jsonl", "texts.jsonl", start=2),
  }
  return TaskDefinition("toy", splits, to_row, parse_answer, str.__eq__, accuracy)


ROWS = [{"q": "one", "a": "1"}, {"q": "two", "a": "2"}, {"q": "three", "a": "3"}, {"q": "four"}]
TEXTS = ["a bar => 1", "mumble", "bars => 3 or 4", "bars => 5"]


def _write(folder, rows=ROWS, texts=TEXTS):
  answers = [{"index": index, "llm_output": text} for index, text in enumerate(texts)]
  for name, lines in (("rows.jsonl", rows), ("texts.jsonl", answers)):
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
  return folder


def test_gold_labels_with_the_teachers_rationales(tmp_path):
  rows, report = load_rows(_task(), "train", _write(tmp_path))
  assert rows == [
    {"input_text": "one", "level": 1, "rationale": "a bar", "output_text": "1"},
    {"input_text": "two", "level": 1, "output_text": "2"},
    {"input_text": "three", "level": 1, "rationale": "bars", "output_text": "3"},
    {"input_text": "four", "level": 1, "rationale": "bars"},
  ]
  assert report.to_json() == {
    "rows": 4,
    "left_out": 0,
    "unlabelled": 1,
    "answered": 4,
    "parsed": 3,
    "undecided": 1,
    "agreeing": 1,
    "dropped": 0,
    "parsed_percent": 75.0,
    "agreeing_percent": 25.0,
    "failures": [{"file": str(tmp_path / "texts.jsonl"), "line": 2, "reason": "no arrow"}],
  }


def test_with_teacher_labels_rows_that_do_not_parse_are_dropped(tmp_path):
  rows, report = load_rows(_task(), "train", _write(tmp_path), label_source="teacher")
  assert rows == [
    {"input_text": "one", "level": 1, "rationale": "a bar", "output_text": "1"},
    {"input_text": "three", "level": 1, "rationale": "bars"},
    {"input_text": "four", "level": 1, "rationale": "bars", "output_text": "5"},
  ]
  assert (report.rows, report.dropped, report.undecided) == (4, 1, 1)


def test_evaluation_always_uses_gold_labels(tmp_path):
  _write(tmp_path)
  assert (
    load_rows(_task(), "test", tmp_path, "teacher").rows
    == load_rows(_task(), "test", tmp_path, "gold").rows
  )
  assert load_rows(_task(), "test", tmp_path, "teacher").rows[0]["output_text"] == "3"


def test_a_blank_rationale_does_not_parse(tmp_path):
  rows, report = load_rows(_task(), "train", _write(tmp_path, texts=[" \n => 1", *TEXTS[1:]]))
  assert "rationale" not in rows[0]
  assert report.failures[0][1:] == (1, "there is no reasoning before the answer")


def test_rows_without_recorded_answers(tmp_path):
  _write(tmp_path)
  task = _task(train=Split("rows.jsonl"))
  rows, report = load_rows(task, "train", tmp_path)
  assert [row.get("output_text") for row in rows] == ["1", "2", "3"]
  assert (report.rows, report.answered, report.dropped) == (4, 0, 1)
  with pytest.raises(UserError, match="no recorded teacher outputs for its train split"):
    load_rows(task, "train", tmp_path, "teacher")


def test_answers_may_be_in_any_order_and_compressed(tmp_path):
  _write(tmp_path)
  lines = (tmp_path / "texts.jsonl").read_text().splitlines()
  (tmp_path / "texts.jsonl.gz").write_bytes(gzip.compress("\r\n".join(lines[::-1]).encode()))
  task = _task(train=Split("rows.jsonl", "texts.jsonl.gz"))
  assert load_rows(task, "train", tmp_path).rows == load_rows(_task(), "train", tmp_path).rows


def test_data_may_be_at_a_url(tmp_path):
  rows = load_rows(_task(), "train", _write(tmp_path)).rows
  assert load_rows(_task(), "train", f"file://{tmp_path}/").rows == rows


def _answer(index, text="a bar => 1"):
  return json.dumps({"index": index, "llm_output": text}) + "\n"


@pytest.mark.parametrize(
  ("texts", "message"),
  [
    (_answer(0) + _answer(1) + _answer(0), 'texts.jsonl:3: "index" 0 is already in line 1'),
    (_answer(4), 'texts.jsonl:1: "index" 4 is outside the 4 rows of rows.jsonl'),
    (_answer(-1), 'texts.jsonl:1: "index" -1 is outside'),
    (_answer(0) + _answer(1) + _answer(3), 'no line has the "index" 2 of'),
    (_answer(True), "texts.jsonl:1: a recorded answer must be"),
    (_answer(0, 5), "texts.jsonl:1: a recorded answer must be"),
    ("{}\n", "this line has the keys []"),
    ("\n{\n", "texts.jsonl:2: the line is not JSON"),
    ("[1]\n", "texts.jsonl:1: the line is a list"),
    ("\udcff", "texts.jsonl:1: the line is not JSON in UTF-8"),
  ],
)
def test_answers_that_do_not_match_their_rows(tmp_path, texts, message):
  _write(tmp_path)
  (tmp_path / "texts.jsonl").write_bytes(texts.encode("utf-8", "surrogateescape"))
  with pytest.raises(UserError) as caught:
    load_rows(_task(), "train", tmp_path)
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "texts.jsonl"])
def test_a_missing_file_is_named(tmp_path, name):
  _write(tmp_path)
  (tmp_path / name).unlink()
  with pytest.raises(UserError, match=f"{name}: task toy needs this file .* --data-dir"):
    load_rows(_task(), "train", tmp_path)


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (
      {"question": "one"},
      r"cannot read this row with the keys \['question'\] \(KeyError: 'q', in .*_test.py:14\)",
    ),
    ({"q": "\u200b"}, 'made a row whose "input_text" is'),
    ({"q": ""}, "made a row whose \"input_text\" is ''"),
    ({"q": "x", "a": 3}, 'made a row whose "output_text" is 3'),
    ({"q": "\ud83d"}, 'made a row whose "input_text" is'),
  ],
)
def test_a_row_that_the_task_cannot_read(tmp_path, row, message):
  _write(tmp_path, rows=[ROWS[0], row])
  with pytest.raises(UserError, match=rf"rows.jsonl:2: task toy {message}"):
    load_rows(_task(train=Split("rows.jsonl")), "train", tmp_path)


def test_a_parser_that_raises_is_a_user_error(tmp_path):
  with pytest.raises(UserError, match=r"texts.jsonl:1: parse_answer of task toy raised ZeroDiv"):
    load_rows(_task(parse_answer=lambda text: 1 / 0), "train", _write(tmp_path))


def test_an_unknown_or_empty_split(tmp_path):
  with pytest.raises(UserError, match="no split 'validation'; it has test, train"):
    load_rows(_task(), "validation", _write(tmp_path))
  with pytest.raises(UserError, match="the train split of task toy has no rows"):
    load_rows(_task(train=Split("rows.jsonl", start=9)), "train", tmp_path)


def test_rows_that_to_row_leaves_out_and_rows_without_a_label_are_said(tmp_path, capsys):
  task = _task(to_row=lambda row: None if row["q"] == "two" else _to_row(row))
  rows, report = load_rows(task, "train", _write(tmp_path))
  assert [(row["input_text"], row["rationale"]) for row in rows] == [
    ("one", "a bar"),
    ("three", "bars"),
    ("four", "bars"),
  ]
  assert (report.rows, report.left_out, report.unlabelled) == (3, 1, 1)
  assert capsys.readouterr().err == (
    f"{tmp_path}/rows.jsonl: 1 row left out, as the task's to_row says (line 2)\n"
    f"{tmp_path}/rows.jsonl: 1 row without a label (line 4)\n"
  )
  with pytest.raises(UserError, match="as the file has 4, 4 of them left out by to_row"):
    load_rows(_task(to_row=lambda row: None), "train", tmp_path)


def test_labels_that_are_numbers(tmp_path):
  _write(tmp_path, rows=[{"q": "one", "a": 1}, {"q": "two", "a": True}])
  task = _task(train=Split("rows.jsonl"))
  with pytest.raises(UserError, match=r'"output_text" is 1; .* or give --labels-as-text'):
    load_rows(task, "train", tmp_path)
  rows = load_rows(task, "train", tmp_path, labels_as_text=True).rows
  assert [row["output_text"] for row in rows] == ["1", "true"]


@pytest.mark.parametrize(
  ("parse_answer", "reason"),
  [
    (lambda text: None, "parse_answer gives None"),
    (lambda text: Answer("\u200b", "1"), "there is no reasoning before the answer"),
  ],
)
def test_an_answer_without_reasoning_does_not_parse(tmp_path, parse_answer, reason):
  report = load_rows(_task(parse_answer=parse_answer), "train", _write(tmp_path)).report
  assert {failure.reason for failure in report.failures} == {reason}


def test_a_blank_label_is_none_and_half_a_character_is_replaced(tmp_path):
  _write(tmp_path, texts=["half \ud83d => 1", "a => \ufeff", "b => 3", "c => 4"])
  rows, report = load_rows(_task(), "train", tmp_path, "teacher")
  assert rows[0]["rationale"] == "half ?"
  assert "output_text" not in rows[1]
  assert report.undecided == 1


@pytest.mark.parametrize("answer", ["text", ("one",), ("a", 1), (1, "a"), ["a", "b"]])
def test_an_answer_of_another_type_is_a_user_error(tmp_path, answer):
  with pytest.raises(UserError, match=r"raised TypeError: it gives .*_test.py"):
    load_rows(_task(parse_answer=lambda text: answer), "train", _write(tmp_path))


def test_a_comparison_or_a_selection_that_raises_is_a_user_error(tmp_path):
  def broken(*arguments):
    raise KeyError("q")

  line = broken.__code__.co_firstlineno + 1
  task = TaskDefinition(
    "toy", {"train": Split("rows.jsonl", "texts.jsonl")}, _to_row, _parse_answer, broken, accuracy
  )
  with pytest.raises(UserError, match=rf"same_label of task toy raised KeyError.*:{line}"):
    load_rows(task, "train", _write(tmp_path))
  task = _task(train=Split("rows.jsonl", keep=broken))
  with pytest.raises(UserError, match=rf"Split.keep failed on row 0 \(KeyError: 'q', in .*:{line}"):
    load_rows(task, "train", tmp_path)
