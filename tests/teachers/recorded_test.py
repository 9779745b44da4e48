"""The recorded teacher: answers by row number, in any order; errors name the line."""

import asyncio
import json

import pytest

from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.prompts import Prompt
from dss_jax.annotation.run import annotate
from dss_jax.data.records import read_rows
from dss_jax.errors import UserError
from dss_jax.teachers.base import RequestFailed, TeacherRequest
from dss_jax.teachers.recorded import RecordedTeacher


@pytest.fixture
def recorded(tmp_path):
  """The path of answers to rows 2 and 0, in this order, with a blank line after each."""
  path = tmp_path / "r.jsonl"
  texts = {2: "Two.\nAnswer: b\ud800", 0: "Zero.\nAnswer: a"}
  path.write_text(
    "".join(json.dumps({"index": n, "llm_output": t}) + "\n\n" for n, t in texts.items())
  )
  return path


def test_answers_are_found_by_row_number(recorded):
  teacher = RecordedTeacher(recorded)

  def ask(row):
    return asyncio.run(teacher.ask(TeacherRequest(row, "x", None, "", (), 1, 0.0))).text

  assert teacher.name == "recorded:r.jsonl"
  # A lone surrogate cannot be written to any file.
  assert (ask(0), ask(2), ask(0)) == ("Zero.\nAnswer: a", "Two.\nAnswer: b?", "Zero.\nAnswer: a")
  with pytest.raises(RequestFailed, match=r"^no recorded answer to row 1 \(from 0\)$"):
    ask(1)
  asyncio.run(teacher.close())


def test_a_row_without_a_recorded_answer_fails_alone(recorded, tmp_path):
  rows = [{"input_text": f"{n}"} for n in range(3)]
  teacher, prompt = RecordedTeacher(recorded), Prompt(instruction="Say.")
  report = annotate(lambda: rows, tmp_path / "o.jsonl", teacher, prompt, AnnotationConfig())
  written = list(read_rows(tmp_path / "o.jsonl"))
  assert [row.get("output_text") for row in written] == ["a", None, "b?"]
  assert written[1]["provenance"]["reason"] == "no recorded answer to row 1 (from 0)"
  assert report["statuses"]["failed"] == 1


def test_a_row_number_that_appears_twice(tmp_path):
  path = tmp_path / "r.jsonl"
  path.write_text('{"index": 0, "llm_output": "a"}\n' * 2)
  with pytest.raises(UserError, match=r'r.jsonl:2: the "index" 0 appears twice; keep one answer'):
    RecordedTeacher(path)


@pytest.mark.parametrize(
  "line",
  [
    "[" * 100_000,
    "7",
    '{"index": 0}',
    '{"index": -1, "llm_output": "a"}',
    '{"index": true, "llm_output": "a"}',
    '{"index": 1, "llm_output": null}',
  ],
)
def test_a_line_that_is_not_a_recorded_answer(line, tmp_path):
  path = tmp_path / "r.jsonl"
  path.write_text('{"index": 0, "llm_output": "a"}\n' + line)
  with pytest.raises(UserError, match=r"r.jsonl:2: not a recorded answer; each line must be"):
    RecordedTeacher(path)
