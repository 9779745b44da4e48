"""The rules of checkpoint selection and early stopping, by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest

from dss_jax.config.schema import EvaluationConfig
from dss_jax.train.selection import Scores, Standing, compare, exceeds_error


def scores(right, loss, accuracy=None):
  return Scores(right, right.count("1") / len(right) if accuracy is None else accuracy, loss)


def first_right(right, rows=100):
  return "1" * right + "0" * (rows - right)


def course(evaluations, **config):
  """The number of the best evaluation, and which were improvements, one after the other."""
  standing, best, improvements = Standing(), None, []
  for number, each in enumerate(evaluations):
    standing, is_best, is_improvement = compare(standing, each, EvaluationConfig(**config))
    # What is saved is all that the next comparison needs.
    standing = Standing.from_json(json.loads(json.dumps(dataclasses.asdict(standing))))
    best = number if is_best else best
    improvements.append(is_improvement)
  return best, improvements


@pytest.mark.parametrize(
  ("one", "other", "exceeds"),
  [
    ("0000", "0000", False),
    ("1000", "0000", False),  # 1 <= 1: one row more may be chance
    ("1100", "0000", True),  # 4 > 2
    ("1110", "0001", False),  # 4 <= 4
    ("11110", "00001", True),  # 9 > 5
    ("1111", "0111", False),
    ("0000", "1111", False),
  ],
)
def test_the_standard_error_of_paired_rows(one, other, exceeds):
  assert exceeds_error(one, other) == exceeds


def test_it_is_the_standard_error_of_the_mean_difference():
  generator = np.random.default_rng(0)
  for _ in range(200):
    one, other = generator.integers(0, 2, (2, 30))
    difference = one - other
    error = difference.std(ddof=1) / math.sqrt(len(difference))
    # Equality, as of one row alone, is within the error; floats cannot tell it.
    if not math.isclose(difference.mean(), error, rel_tol=1e-9):
      texts = ("".join(map(str, each)) for each in (one, other))
      assert exceeds_error(*texts) == (difference.mean() > error)


def test_one_token_more_is_not_better_than_a_lower_loss():
  """Measured on 100 rows of creak: the label's end token is always right."""
  early, late = scores(first_right(52), 1.55, 0.760), scores(first_right(51), 0.47, 0.755)
  assert course([early, late]) == (1, [True, True])
  assert course([early, late], selection="token-accuracy") == (0, [True, False])


def test_clearly_more_labels_win_whatever_the_loss():
  assert course([scores(first_right(50), 0.1), scores(first_right(60), 9.0)]) == (1, [True, True])


def test_a_lower_loss_with_clearly_fewer_labels_is_no_improvement():
  evaluations = [scores(first_right(60), 1.0), scores(first_right(50), 0.1)]
  assert course(evaluations) == (0, [True, False])


def test_a_plateau_is_no_improvement():
  evaluations = [scores(first_right(right), 1.0) for right in (50, 51, 50, 51, 50)]
  assert course(evaluations) == (0, [True, False, False, False, False])


def test_a_falling_loss_does_not_lower_the_accuracy_a_little_at_a_time():
  """Each is within the error of the one before it, but only the second of the first."""
  evaluations = [scores(first_right(60 - lost), 1.0 - 0.1 * lost) for lost in range(6)]
  assert course(evaluations) == (1, [True, True, False, False, False, False])


def test_an_accuracy_that_rises_a_little_at_a_time_counts_in_the_end():
  evaluations = [scores(first_right(50 + won), 1.0 + 0.1 * won) for won in range(4)]
  assert course(evaluations) == (2, [True, False, True, False])


def test_of_long_labels_that_are_never_wholly_right_the_loss_decides():
  evaluations = [scores(first_right(0), loss) for loss in (3.0, 2.0, 2.5, 1.9)]
  assert course(evaluations) == (3, [True, True, False, True])


def test_a_least_improvement_widens_the_tie():
  evaluations = [scores(first_right(50), 1.0), scores(first_right(54), 2.0)]
  assert course(evaluations)[0] == 1
  assert course(evaluations, min_improvement=0.05)[0] == 0


@pytest.mark.parametrize(
  ("evaluations", "best", "improvements"),
  [
    ([(0.5, 1.0), (0.5, 0.9), (0.5, 1.1)], 1, [True, False, False]),  # then the smaller loss
    ([(0.5, 0.1), (0.6, 9.0), (0.5, 0.1)], 1, [True, True, False]),  # accuracy before loss
    ([(0.5, 1.0), (0.5, 1.0)], 1, [True, False]),  # alike in both, the newest
    ([(0.1, 1.0), (0.2, 1.0), (0.35, 1.0)], 2, [True, False, True]),  # too little at a time
  ],
)
def test_the_rule_of_the_service(evaluations, best, improvements):
  got = course(
    [scores("0", loss, accuracy) for accuracy, loss in evaluations],
    selection="token-accuracy",
    min_improvement=0.15 if len(evaluations) == 3 and best == 2 else 0.0,
  )
  assert got == (best, improvements)
