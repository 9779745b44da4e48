"""The shipped tasks on the published files: published figures, and disjoint splits."""

import json
import re

import pytest

from dss_jax.data.arithmetic import value_of
from dss_jax.data.task_files import load_task, percent
from dss_jax.data.task_rows import load_rows


def _sums(name, splits, shared):
  """Returns rows, parsed and agreeing, summed over splits of one published file."""
  task = load_task(name)
  reports = [load_rows(task, split, shared / "data" / name).report for split in splits]
  assert all(report.answered == report.rows for report in reports)
  assert all(
    report.parsed + len(report.failures) == report.answered and report.dropped == 0
    for report in reports
  )
  return [sum(getattr(r, key) for r in reports) for key in ("rows", "parsed", "agreeing")]


@pytest.mark.parametrize(
  ("name", "splits", "rows", "parsed", "agreeing", "parsed_percent", "agreeing_percent"),
  [
    ("cqa", ("train", "validation"), 9741, 9738, 7234, "99.97", "74.3"),
    ("cqa", ("test",), 1221, 1221, 943, "100.00", "77.2"),
    ("svamp", ("train", "validation"), 800, 787, 594, "98.38", "74.2"),
    ("esnli", ("train", "validation", "test"), 9842, 9838, 7201, "99.96", "73.2"),
  ],
)
def test_parse_and_agreement(
  name, splits, rows, parsed, agreeing, parsed_percent, agreeing_percent, shared
):
  assert _sums(name, splits, shared) == [rows, parsed, agreeing]
  assert f"{percent(parsed, rows):.2f}" == parsed_percent
  assert f"{percent(agreeing, rows):.1f}" == agreeing_percent


def test_svamp_agreement_as_published(shared):
  """The published 73.5 % ends an answer at its last bracket and evaluates "a and b" as Python.

  Our parser reads all of "(16 * 17) * 4", and finds no single label in "(a) and (b)".
  """
  folder = shared / "data" / "svamp"
  agreeing = 0
  with (folder / "train.jsonl").open() as rows, (folder / "train_palm_cot.jsonl").open() as texts:
    for row, text in zip(rows, texts, strict=True):
      answer = json.loads(text)["llm_output"].split("\nQ:")[0].partition("The answer is")[2]
      bracketed = re.search(r"\(.*\)", answer)
      if bracketed:
        last = re.sub(r"^\(*.* and \(*(.*?)\)*$", r"(\1)", bracketed[0])
        agreeing += value_of(last) == value_of(json.loads(row)["label"])
  assert percent(agreeing, 800) == 73.5


@pytest.mark.parametrize("name", ["cqa", "svamp", "esnli"])
def test_no_input_is_in_two_splits(name, shared):
  task = load_task(name)
  inputs = {
    split: {row["input_text"] for row in load_rows(task, split, shared / "data" / name).rows}
    for split in task.splits
  }
  assert inputs["train"].isdisjoint(inputs["validation"])
  assert inputs["train"].isdisjoint(inputs["test"])
  assert inputs["validation"].isdisjoint(inputs["test"])


@pytest.mark.parametrize(("name", "held_out"), [("cqa", 250), ("svamp", 80), ("esnli", 249)])
def test_validation_is_a_tenth_or_250_rows(name, held_out, shared):
  task = load_task(name)
  assert load_rows(task, "validation", shared / "data" / name).report.rows == held_out


def test_no_premise_of_esnli_is_in_two_splits(shared):
  task = load_task("esnli")
  premises = {}
  for split in task.splits:
    for row in load_rows(task, split, shared / "data" / "esnli").rows:
      premises.setdefault(row["input_text"].split("\n")[1], set()).add(split)
  assert len(premises) == 3319
  assert all(len(splits) == 1 for splits in premises.values())


@pytest.mark.parametrize(
  ("name", "dropped", "without_label"), [("cqa", 3, 273), ("svamp", 10, 17), ("esnli", 3, 0)]
)
def test_labels_of_the_teacher(name, dropped, without_label, shared):
  rows, report = load_rows(load_task(name), "train", shared / "data" / name, label_source="teacher")
  assert report.dropped == dropped == len(report.failures)
  assert len(rows) == report.rows - dropped
  assert sum("output_text" not in row for row in rows) == without_label == report.undecided
  assert all(row["rationale"] for row in rows)


@pytest.mark.parametrize("name", ["cqa", "svamp", "esnli"])
def test_rationales_contain_no_answer_and_no_next_question(name, shared):
  task = load_task(name)
  for split in task.splits:
    for row in load_rows(task, split, shared / "data" / name).rows:
      rationale = row.get("rationale", "-")
      assert rationale == rationale.strip() != ""
      assert not re.search(r"(So the|\. The) answer is \(", rationale)
      assert not re.search(r"^(Q|Premise|Answer):", rationale, re.M)


def test_report_as_json_names_file_and_line(shared):
  folder = shared / "data" / "svamp"
  report = load_rows(load_task("svamp"), "train", folder).report.to_json()
  assert report["rows"] == report["answered"] == 720
  assert report["parsed_percent"] == percent(report["parsed"], 720)
  assert json.loads(json.dumps(report)) == report
  first = report["failures"][0]
  assert first["file"] == str(folder / "train_palm_cot.jsonl")
  line = (folder / "train_palm_cot.jsonl").read_text().split("\n")[first["line"] - 1]
  assert "The answer is (" not in json.loads(line)["llm_output"].split("\nQ:")[0]
