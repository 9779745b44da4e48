"""`dss evaluate` with real students: its figures, its comparison, its page, its documentation."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from dss_jax.config.schema import MeshConfig
from dss_jax.data.rationale_checks import mentions
from dss_jax.data.sources import source_from_file
from dss_jax.evaluation.evaluate import evaluate_student
from dss_jax.evaluation.likelihood import answer_probabilities
from dss_jax.model.layer_stacks import unrolled_config
from dss_jax.parallel.mesh import make_mesh
from dss_jax.student.student import Student
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.step import Trainer

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
EVALUATE = ("evaluate", "--mesh", "data=1", "--dataset", "eval.jsonl")


def test_the_probability_of_a_label_is_that_of_its_tokens(finished):
  """Of all labels together it is the evaluation's loss."""
  student = Student.open(finished.folder / "student")
  mesh = make_mesh(MeshConfig(data=1), student.config.batch_size)
  params = student.params(mesh, scan_layers=False)
  config = dataclasses.replace(student.config, model=unrolled_config(student.config.model))
  trainer = Trainer(config, make_optimizer(config.optimizer, 1), mesh)
  rows = finished.read("eval.jsonl")
  texts, labels = ([row[key] for row in rows] for key in ("input_text", "output_text"))
  got = answer_probabilities(student, trainer, params, texts, labels)
  tokens = sum(len(label.encode()) + 1 for label in labels)
  loss = finished(*EVALUATE, "--model", "student").json["label/eval_loss"]
  assert -np.log(got).sum() / tokens == pytest.approx(loss, rel=1e-5)
  # One by one, with other rows in the batch, and with an answer of nothing.
  alone = answer_probabilities(student, trainer, params, texts[3:4], labels[3:4])
  assert alone[0] == pytest.approx(got[3], rel=1e-5)
  assert 0 < answer_probabilities(student, trainer, params, texts[:1], [""])[0] < 1


def test_a_label_that_is_wholly_right_is_what_the_student_writes(dss):
  """It has learned to say yes to everything."""
  row = {"input_text": "Is it so?", "output_text": "yes", "rationale": "It is: yes."}
  dss.write("train.jsonl", [row] * 16)
  path = dss.write("eval.jsonl", [row] * 6 + [{**row, "output_text": "no"}] * 4)
  dss.train("student", "--train-steps", "40", "--learning-rate-multiplier", "30")
  student = Student.open(dss.folder / "student")
  judgement = evaluate_student(student, source_from_file(path), MeshConfig(data=1), explain=True)
  assert {answer.prediction for answer in judgement.rows} == {"yes"}
  report = judgement.report
  assert report["exact_match"] == report["labels"]["scores"]["exact_match"]["mean"] == 0.6
  assert report["label/eval_sequence_accuracy"] == pytest.approx(0.6)
  assert [row.is_right for row in judgement.rows] == [True] * 6 + [False] * 4
  assert 0.2 < report["labels"]["calibration"]["mean_probability"] < 1.0
  assert report["rationales"]["with_reference"] == 10
  mentioning = [mentions(row.rationale, row.prediction) for row in judgement.rows]
  assert report["rationales"]["label_follows"]["mean"] == sum(mentioning) / 10
  assert json.loads(json.dumps(report)) == report


def test_students_are_compared_on_the_same_rows(finished, whole):
  result = finished(*EVALUATE, "--model", "student", "--model", "whole").json
  alone = finished(*EVALUATE, "--model", "whole").json
  assert [report["model"] for report in result["models"]] == ["student", "whole"]
  assert result["models"][1] == alone
  (comparison,) = result["comparisons"]
  assert (comparison["model"], comparison["compared_with"]) == ("whole", "student")
  exact = comparison["scores"]["exact_match"]
  wanted = alone["exact_match"] - result["models"][0]["exact_match"]
  assert exact["difference"] == pytest.approx(wanted)
  assert exact["test"] == "exact McNemar"


def test_a_student_of_labels_alone_has_no_rationale_to_judge(with_student, refuses):
  with_student.train("tuned", command="tune")
  refuses(
    *EVALUATE, "--model", "tuned", "--explain", says=["trained on labels alone", "--explain"],
    workshop=with_student,
  )  # fmt: skip


def test_the_page(with_student):
  outcome = with_student(*EVALUATE, "--model", "student", "--text", "--html", "page.html")
  assert outcome.code == 0, outcome.err
  assert outcome.out.startswith("student: step ")
  page = (with_student.folder / "page.html").read_text(encoding="utf-8")
  assert outcome.out.strip().splitlines()[0] in page
  assert page.count("<svg") == 4
  assert page.count('<tr class="') == 12


def documented():
  text = (REPOSITORY / "docs" / "evaluation.md").read_text(encoding="utf-8")
  return [line for line in text.splitlines() if line.startswith("dss evaluate ")]


def test_the_documentation_has_commands():
  assert len(documented()) >= 3


@pytest.mark.parametrize("command", documented())
def test_the_commands_of_the_documentation_run(with_student, command):
  for name in ("a", "b"):
    shutil.copytree(with_student.folder / "student", with_student.folder / "runs" / name)
  with_student.write("test.jsonl", with_student.read("eval.jsonl"))
  outcome = with_student(*command.split()[1:], "--mesh", "data=1")
  assert outcome.code == 0, outcome.err
