"""Reliability by hand and by scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from dss_jax.evaluation.calibration import calibration


def test_it_is_that_of_scikit_learn():
  generator = np.random.default_rng(0)
  probabilities = generator.beta(4, 1, 500)
  right = generator.random(500) < probabilities**2
  figures = calibration(probabilities, right)
  shares, means = calibration_curve(right, probabilities, n_bins=10)
  filled = [each for each in figures["bins"] if each["rows"]]
  assert [each["right"] for each in filled] == pytest.approx(shares.tolist())
  assert [each["probability"] for each in filled] == pytest.approx(means.tolist())
  assert figures["brier"] == pytest.approx(brier_score_loss(right, probabilities))


def test_the_expected_error_by_hand():
  """Three rows at 0.9 with one right, one at 0.2 that is right: 3/4 * |1/3 - 0.9| + 1/4 * 0.8."""
  figures = calibration(np.array([0.9, 0.9, 0.9, 0.2]), np.array([True, False, False, True]))
  assert figures["ece"] == pytest.approx(0.75 * (0.9 - 1 / 3) + 0.25 * 0.8)
  assert figures["mean_probability"] == pytest.approx(0.725)
  assert figures["bins"][0] == {
    "low": 0.0, "high": 0.1, "rows": 0, "probability": None, "right": None
  }  # fmt: skip


def test_the_ends_have_a_bin():
  bins = calibration(np.array([0.0, 0.1, 1.0]), np.array([False, True, True]))["bins"]
  assert [each["rows"] for each in bins] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
