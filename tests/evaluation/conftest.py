"""Evaluations of students that do not exist, for reports."""

import json

import numpy as np
import pytest

from dss_jax.evaluation.evaluate import AnsweredRow, Judgement
from dss_jax.evaluation.figures import label_quality, rationale_quality
from dss_jax.evaluation.metrics import row_scores


@pytest.fixture
def make_judgement(tmp_path):
  """The judgement of (input, label, answer, probability) rows, each with the same rationale."""

  def make_judgement(rows, *, name="student", rationale=None):
    folder = tmp_path / name
    folder.mkdir()
    metrics = [
      {"step": 1, "train_total_loss": 4.0, "label/train_loss": 2.0, "label/train_accuracy": 0.0},
      {"step": 2, "train_total_loss": 3.0, "label/train_loss": 1.0, "label/train_accuracy": 0.5},
      {"step": 2, "eval_total_loss": 3.5, "label/eval_loss": 1.5, "label/eval_accuracy": 0.25},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in metrics))
    _, labels, answers, probabilities = zip(*rows, strict=True)
    scores = row_scores(labels, answers)
    report = {
      "model": str(folder),
      "best_step": 2,
      "rows": len(rows),
      "labelled": len(rows),
      "task_metrics": {"mine": 7.0, "matrix": [[1]], "none": None},
      "labels": label_quality(labels, answers, scores, np.array(probabilities)),
      "rationales": rationale
      and rationale_quality([rationale] * len(rows), [rationale] * len(rows), answers),
    }
    answered = [
      AnsweredRow(number, text, label, answer, label == answer, probability, rationale)
      for number, (text, label, answer, probability) in enumerate(rows, start=1)
    ]
    return Judgement(folder, report, answered, scores)

  return make_judgement
