"""Confidence intervals of scores, and tests of whether two students differ on the same rows.

Everything random has a fixed seed, so that the same predictions give the same figures.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

CONFIDENCE = 0.95
_RESAMPLES = 2000
_PERMUTATIONS = 9999
# Resamples held in memory at a time.
_BATCH = 100


def mean_interval(scores: np.ndarray) -> list[float]:
  """Returns the 95 % confidence interval of a mean over rows.

  Of scores that are 0 or 1, Wilson's: all of few rows right is then no certainty. Of others, the
  bootstrap's percentiles.
  """
  from scipy import stats

  if np.isin(scores, (0.0, 1.0)).all():
    test = stats.binomtest(int(scores.sum()), len(scores))
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return [float(interval.low), float(interval.high)]
  return _bootstrap(scores, np.mean, vectorized=True)


def row_statistic_interval(statistic: Callable[[np.ndarray], float], rows: int) -> list[float]:
  """Returns the bootstrap's 95 % confidence interval of a function of row numbers."""
  return _bootstrap(np.arange(rows), statistic, vectorized=False)


def paired_comparison(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
  """Compares the scores of two students on the same rows.

  Returns a dict: `difference`, the mean of one - other, with its bootstrap `interval`; and
  `p_value`, two-sided, of the `test`: the exact McNemar test if all scores are 0 or 1, else the
  permutation test that exchanges the students' scores of a row.
  """
  from scipy import stats

  difference = one - other
  figures: dict[str, Any] = {
    "difference": float(difference.mean()),
    "interval": _bootstrap(difference, np.mean, vectorized=True),
  }
  if np.isin(np.stack([one, other]), (0.0, 1.0)).all():
    won, lost = int((difference > 0).sum()), int((difference < 0).sum())
    p_value = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    return {**figures, "test": "exact McNemar", "p_value": float(p_value)}
  result = stats.permutation_test(
    (one, other),
    lambda x, y, axis: np.mean(x - y, axis=axis),
    permutation_type="samples",
    vectorized=True,
    n_resamples=_PERMUTATIONS,
    batch=_BATCH,
    rng=np.random.default_rng(0),
  )
  return {**figures, "test": "permutation", "p_value": float(result.pvalue)}


def _bootstrap(values: np.ndarray, statistic: Any, *, vectorized: bool) -> list[float]:
  from scipy import stats

  if len(values) < 2 or (vectorized and np.ptp(values) == 0.0):
    value = float(statistic(values))
    return [value, value]
  interval = stats.bootstrap(
    (values,),
    statistic,
    vectorized=vectorized,
    n_resamples=_RESAMPLES,
    batch=_BATCH if vectorized else None,
    confidence_level=CONFIDENCE,
    method="percentile",
    rng=np.random.default_rng(0),
  ).confidence_interval
  return [float(interval.low), float(interval.high)]
