"""Intervals and tests against scipy's values and against hand calculations."""

import warnings

import numpy as np
import pytest
from scipy import stats

from dss_jax.evaluation.intervals import (
  mean_interval,
  paired_comparison,
  row_statistic_interval,
)


def test_right_or_wrong_has_wilsons_interval():
  """8 of 10: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
  z, n, p = stats.norm.ppf(0.975), 10, 0.8
  middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  wanted = (np.array([middle - half, middle + half]) / (1 + z**2 / n)).tolist()
  assert mean_interval(np.array([1.0] * 8 + [0.0] * 2)) == pytest.approx(wanted)


def test_all_of_few_rows_right_is_no_certainty():
  low, high = mean_interval(np.ones(8))
  assert low == pytest.approx(1 / (1 + stats.norm.ppf(0.975) ** 2 / 8))
  assert high == 1.0


def test_other_scores_have_the_bootstraps_interval():
  scores = np.random.default_rng(3).beta(2, 1, 400)
  low, high = mean_interval(scores)
  error = scores.std(ddof=1) / np.sqrt(400)
  assert low == pytest.approx(scores.mean() - 1.96 * error, abs=0.2 * error)
  assert high == pytest.approx(scores.mean() + 1.96 * error, abs=0.2 * error)
  assert mean_interval(scores) == [low, high]


def test_of_equal_scores_and_of_one_row_there_is_a_point():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert mean_interval(np.full(5, 0.25)) == [0.25, 0.25]
    assert mean_interval(np.array([0.25])) == [0.25, 0.25]


def test_a_function_of_rows():
  scores = np.random.default_rng(3).beta(2, 1, 400)
  low, high = row_statistic_interval(lambda rows: float(scores[rows].mean()), 400)
  wanted = mean_interval(scores)
  assert [low, high] == pytest.approx(wanted, abs=0.01)


def test_mcnemar_by_hand():
  """One wins 5 rows and loses 1: 2 * (1 + 6) / 2^6."""
  one = np.array([1.0] * 5 + [0.0] + [1.0] * 4)
  other = np.array([0.0] * 5 + [1.0] + [1.0] * 4)
  figures = paired_comparison(one, other)
  assert figures["test"] == "exact McNemar"
  assert figures["p_value"] == pytest.approx(14 / 64)
  assert figures["difference"] == pytest.approx(0.4)
  assert figures["interval"][0] < 0.4 < figures["interval"][1]
  assert paired_comparison(one, one)["p_value"] == 1.0


def test_the_permutation_test_is_exact_on_few_rows():
  """All 2^6 signs of the differences; only two are as extreme as these."""
  one = np.array([0.9, 0.8, 0.7, 0.6, 0.9, 0.8])
  figures = paired_comparison(one, one - np.array([0.1, 0.2, 0.3, 0.15, 0.25, 0.35]))
  assert figures["test"] == "permutation"
  assert figures["p_value"] == pytest.approx(2 / 64)


def test_the_permutation_test_agrees_with_students_on_many_rows():
  generator = np.random.default_rng(5)
  one = generator.normal(0.5, 0.1, 300)
  other = one + generator.normal(0.008, 0.1, 300)
  got, wanted = paired_comparison(other, one)["p_value"], stats.ttest_rel(other, one).pvalue
  assert 0.01 < wanted < 0.9
  assert got == pytest.approx(wanted, abs=0.02)
