"""Whether a student is right as often as it thinks: reliability, ECE and Brier score."""

from typing import Any

import numpy as np

BINS = 10


def calibration(probabilities: np.ndarray, right: np.ndarray) -> dict[str, Any]:
  """Returns the figures of the probabilities that a student gives its own answers.

  `ece`, the expected calibration error: sum over the bins of rows / all rows *
  |share right - mean probability| (Guo et al. 2017, equation 3); `brier`, the mean of
  (probability - right)^2; `mean_probability`; and `bins`, ten of equal width, each with its
  `low` and `high` (inclusive), `rows`, `probability` and `right`, the bin's means, None in an
  empty bin.

  Args:
    probabilities: float [rows], from 0 to 1.
    right: bool [rows].
  """
  edges = np.linspace(0.0, 1.0, BINS + 1)
  places = np.searchsorted(edges[1:-1], probabilities)
  bins: list[dict[str, Any]] = []
  error = 0.0
  for number in range(BINS):
    members = places == number
    rows = int(members.sum())
    means = [float(each[members].mean()) if rows else None for each in (probabilities, right)]
    if rows:
      error += rows / len(right) * abs(right[members].mean() - probabilities[members].mean())
    bins.append(
      {
        "low": float(edges[number]),
        "high": float(edges[number + 1]),
        "rows": rows,
        "probability": means[0],
        "right": means[1],
      }
    )
  return {
    "ece": float(error),
    "brier": float(np.mean((probabilities - right) ** 2)),
    "mean_probability": float(probabilities.mean()),
    "bins": bins,
  }
