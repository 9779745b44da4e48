"""Figures from texts, as JSON values."""

import json

import numpy as np
import pytest

from dss_jax.evaluation.figures import comparison, label_quality, rationale_quality
from dss_jax.evaluation.metrics import row_scores


def test_labels():
  labels, answers = ["yes", "no"] * 10, ["yes", "yes"] * 10
  scores = row_scores(labels, answers)
  figures = label_quality(labels, answers, scores, np.full(20, 0.75))
  assert figures["scores"]["exact_match"]["mean"] == 0.5
  macro_f1 = figures["classes"]["macro_f1"]
  assert macro_f1["mean"] == pytest.approx(1 / 3)
  assert macro_f1["interval"][0] <= macro_f1["mean"] <= macro_f1["interval"][1]
  assert figures["classes"]["confusion"] == [[0, 10, 0], [0, 10, 0]]
  assert figures["calibration"]["ece"] == 0.25
  assert json.loads(json.dumps(figures)) == figures


def test_rationales():
  """The first is its reference, the second says another label than the answer, the third none."""
  figures = rationale_quality(
    ["It is hot, so yes.", "It is cold, so no.", None],
    ["It is hot, so yes.", "It is hot, so yes.", "Who knows?"],
    ["yes", "no", "no"],
  )
  assert figures["with_reference"] == 2
  assert figures["scores"]["rouge1"]["mean"] == pytest.approx((1.0 + 3 / 5) / 2)
  assert figures["label_follows"]["mean"] == pytest.approx(1 / 3)
  assert json.loads(json.dumps(figures)) == figures


def test_rationales_without_a_reference():
  figures = rationale_quality([None], ["It is yes."], ["yes"])
  assert (figures["with_reference"], figures["scores"]) == (0, {})
  assert figures["label_follows"]["mean"] == 1.0


def test_scores_that_both_have_are_compared():
  one = {"exact_match": np.ones(6), "value_match": np.ones(6)}
  figures = comparison(one, {"exact_match": np.zeros(6)})
  assert list(figures) == ["exact_match"]
  assert figures["exact_match"]["difference"] == 1.0
  assert figures["exact_match"]["p_value"] == pytest.approx(2 / 2**6)
