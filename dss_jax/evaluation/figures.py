"""The figures of a student's answers and rationales, as JSON values, from texts alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dss_jax.data.rationale_checks import mentions
from dss_jax.evaluation.calibration import calibration
from dss_jax.evaluation.intervals import (
  mean_interval,
  paired_comparison,
  row_statistic_interval,
)
from dss_jax.evaluation.metrics import Classes, find_classes, rouge


def with_intervals(scores: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
  """Returns the `mean` and the 95 % confidence `interval` of each score."""
  return {
    name: {"mean": float(each.mean()), "interval": mean_interval(each)}
    for name, each in scores.items()
  }


def label_quality(
  labels: Sequence[str],
  predictions: Sequence[str],
  scores: Mapping[str, np.ndarray],
  probabilities: np.ndarray,
) -> dict[str, Any]:
  """Returns the `scores` with intervals, the `classes` (None of free text) and the `calibration`.

  Args:
    labels: as the student's vocabulary can write them.
    scores: row_scores(labels, predictions).
    probabilities: what the student gives its answers, float [rows].
  """
  classes = find_classes(labels, predictions)
  return {
    "scores": with_intervals(scores),
    "classes": None if classes is None else _class_figures(classes),
    "calibration": calibration(probabilities, scores["exact_match"] == 1.0),
  }


def _class_figures(classes: Classes) -> dict[str, Any]:
  interval = row_statistic_interval(classes.macro_f1, len(classes.codes))
  return {
    "macro_f1": {"mean": classes.macro_f1(), "interval": interval},
    "table": classes.figures(),
    "confusion": classes.confusion.tolist(),
  }


def rationale_quality(
  references: Sequence[str | None], rationales: Sequence[str], predictions: Sequence[str]
) -> dict[str, Any]:
  """Returns the figures of a student's own rationales.

  `with_reference`: the rows with a rationale to compare with, of which the `scores` are (ROUGE);
  `label_follows`: the share of rationales that mention the predicted label.
  """
  pairs = [(one, other) for one, other in zip(references, rationales, strict=True) if one]
  follows = np.array([float(mentions(*pair)) for pair in zip(rationales, predictions, strict=True)])
  scores = rouge(*zip(*pairs, strict=True)) if pairs else {}
  return {
    "with_reference": len(pairs),
    "scores": with_intervals(scores),
    "label_follows": with_intervals({"label_follows": follows})["label_follows"],
  }


def comparison(
  one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
  """Returns paired_comparison of each score that both have."""
  return {name: paired_comparison(one[name], other[name]) for name in one if name in other}
