"""A user's own task file: what it leaves out, gives in NumPy's types, or fails at."""

import json

import pytest

TASK_FILE = """
import numpy as np
from dss_jax.data.task_files import Answer, Split, TaskDefinition

def to_row(row):
  if row["n"] == 3:
    return None
  return {"input_text": row["q"], "output_text": row["a"], "rationale": "So it is."}

def metric(targets, predictions):
  METRIC

TASK = TaskDefinition(
  name="mine", splits={"train": Split("rows.jsonl"), "test": Split("rows.jsonl", stop=6)},
  to_row=to_row, parse_answer=lambda text: Answer(text, "odd"), same_label=str.__eq__,
  metric=metric,
)
"""


@pytest.fixture
def mine(with_student):
  """Writes mine.py with a metric's body; its rows are those of the folder data."""
  (with_student.folder / "data").mkdir()
  rows = [{"n": n, "q": f"Even or odd: {n}", "a": ("even", "odd")[n % 2]} for n in range(12)]
  with_student.write("data/rows.jsonl", rows)

  def mine(metric):
    (with_student.folder / "mine.py").write_text(TASK_FILE.replace("METRIC", metric))
    return ("--task", "mine.py", "--data-dir", "data")

  return mine


def test_figures_of_numpy_and_none_are_printed(with_student, mine):
  task = mine('return {"x": np.float32(0.5), "y": {"z": np.arange(2)}, "nan": np.nan}')
  outcome = with_student("evaluate", "--mesh", "data=1", "--model", "student", *task)
  assert outcome.code == 0, outcome.err
  assert outcome.json["labelled"] == 5
  assert outcome.json["task_metrics"] == {"x": 0.5, "y": {"z": [0, 1]}, "nan": None}
  assert "data/rows.jsonl: 1 row left out, as the task's to_row says (line 4)" in outcome.err


def test_a_metric_that_fails_costs_its_own_figures(with_student, mine):
  task = mine('raise ValueError("\\x1b[31mno")')
  outcome = with_student("evaluate", "--mesh", "data=1", "--model", "student", *task)
  assert outcome.code == 0, outcome.err
  assert outcome.json["task_metrics"] == {}
  assert "exact_match" in outcome.json
  assert r"the task's metric failed: ValueError: \x1b[31mno, in " in outcome.err
  assert "mine.py:11; its figures are left out" in outcome.err


def test_rows_left_out_keep_the_others_numbers_in_recorded_answers(with_student, mine):
  mine("return {}")
  text = TASK_FILE.replace('"rationale": "So it is."', "").replace(
    'Answer(text, "odd")', "(text, None)"
  )
  (with_student.folder / "mine.py").write_text(text.replace("METRIC", "return {}"))
  answers = [{"index": n, "llm_output": f"It is number {n}."} for n in range(12)]
  with_student.write("recorded.jsonl", answers)
  outcome = with_student(
    *("annotate", "data/rows.jsonl", "--task", "mine.py", "--teacher-labels", "keep"),
    *("--teacher", "recorded:recorded.jsonl", "--output", "out.jsonl"),
  )
  assert outcome.code == 0, outcome.err
  rows = with_student.read("out.jsonl")
  assert json.loads(outcome.out)["rows"] == len(rows) == 11
  for row in rows:
    assert row["rationale"] == f"It is number {row['input_text'].split()[-1]}."
