"""The short report: what it shows of classes, of free text, and of two students."""

from dss_jax.evaluation.evaluate import compare_students
from dss_jax.evaluation.text_report import to_text


def lines_of(result):
  return [" ".join(line.split()) for line in to_text(result).splitlines()]


def test_classes(make_judgement):
  rows = [("q", "yes", "yes", 0.5)] * 6 + [("q", "no", "yes", 0.5)] * 4
  lines = lines_of(make_judgement(rows).report)
  assert lines[0].endswith("student: step 2, 10 labelled rows")
  assert "exact match 60.00% [31.27%, 83.18%]" in lines
  assert any(line.startswith("macro F1 37.50%") for line in lines)
  assert "task: mine 7.00" in lines
  assert "calibration mean probability 0.500, ECE 0.100, Brier score 0.250" in lines
  assert "yes 6 10 0.600 1.000 0.750" in lines
  assert "no 4 0 0.000 0.000 0.000" in lines
  assert not any("SQuAD" in line or "ROUGE" in line or "matrix" in line for line in lines)


def test_free_text_and_rationales(make_judgement):
  rows = [("q", "a red box", "the red box", 0.5), ("q", "7", "(3 + 4)", 0.5)]
  lines = lines_of(make_judgement(rows, rationale="It is the red box.").report)
  assert any(line.startswith("value match 50.00%") for line in lines)
  assert any(line.startswith("SQuAD exact match 50.00%") for line in lines)
  assert any(line.startswith("ROUGE-1 of rationale 100.00%") for line in lines)
  assert any(line.startswith("mentions its label 50.00%") for line in lines)
  assert not any("macro" in line for line in lines)


def test_many_classes_are_cut(make_judgement):
  rows = [("q", f"class {n:02}", "class 00", 0.5) for n in range(25) for _ in range(5)]
  lines = lines_of(make_judgement(rows).report)
  assert lines[-1] == "and 5 more classes"


def test_two_students(make_judgement):
  labels = ["yes"] * 8
  one = make_judgement([("q", label, "yes", 0.9) for label in labels], name="one")
  two = make_judgement([("q", label, "no", 0.9) for label in labels], name="two")
  lines = lines_of(compare_students([one, two]))
  assert lines[-2] == f"{two.directory} against {one.directory}, on the same rows"
  assert lines[-1] == ("exact match -100.00 points [-100.00, -100.00] p = 0.00781 (exact McNemar)")
