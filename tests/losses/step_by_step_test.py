"""The step-by-step loss by hand: alpha, token means over the whole batch, tasks without tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.losses.base import LossSum
from dss_jax.losses.cross_entropy import TokenLosses
from dss_jax.losses.step_by_step import (
  LABEL,
  RATIONALE,
  TaskSums,
  coefficients,
  combined,
  task_sums,
  task_weights,
)

# Two rows of four positions: two label tokens, four rationale tokens, two of padding.
LOSSES = np.array([[1.0, 3.0, 10.0, 77.0], [20.0, 30.0, 40.0, 99.0]], np.float32)
CORRECT = np.array([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]], np.float32)
WEIGHTS = np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]], np.float32)
TASKS = np.array([[LABEL, LABEL, RATIONALE, LABEL], [RATIONALE, RATIONALE, RATIONALE, RATIONALE]])
# alpha * (1 + 3) / 2 + (1 - alpha) * (10 + 20 + 30 + 40) / 4 at alpha 0.3.
BY_HAND = 0.3 * 2.0 + 0.7 * 25.0


def sums(rows=slice(None), weights=WEIGHTS):
  return task_sums(TokenLosses(LOSSES[rows], CORRECT[rows]), weights[rows], TASKS[rows])


def test_the_coefficients_make_the_sum_the_step_by_step_loss():
  weights = task_weights(WEIGHTS, TASKS)
  assert [float(each) for each in weights] == [2.0, 4.0]
  each = coefficients(WEIGHTS, TASKS, *weights, alpha=0.3)
  np.testing.assert_allclose(np.sum(each * LOSSES), BY_HAND, rtol=1e-6)
  np.testing.assert_array_equal(each[:, 3], 0.0)


def test_the_summed_tasks_give_the_same_loss():
  np.testing.assert_allclose(combined(sums(), alpha=0.3), BY_HAND, rtol=1e-6)
  got = [float(each) for each in (*sums().label_correct, *sums().rationale_correct)]
  assert got == [1.0, 2.0, 3.0, 4.0]


def test_rows_summed_apart_give_the_whole():
  np.testing.assert_array_equal(np.array(sums(slice(0, 1)) + sums(slice(1, 2))), np.array(sums()))
  # The mean of the rows' own losses is another number: this is what LossSum is for.
  apart = [float(combined(sums(rows), alpha=0.3)) for rows in (slice(0, 1), slice(1, 2))]
  assert abs(np.mean(apart) - BY_HAND) > 1.0


@pytest.mark.parametrize(("alpha", "loss"), [(1.0, 2.0), (0.0, 25.0), (0.5, 13.5)])
def test_alpha(alpha, loss):
  assert float(combined(sums(), alpha=alpha)) == loss


def test_tokens_count_by_their_weight():
  weights = WEIGHTS.copy()
  weights[0, 0] = 0.5
  label, _ = task_weights(weights, TASKS)
  assert float(label) == 1.5
  half = sums(weights=weights)
  assert float(half.label_loss.total) == 3.5
  assert float(half.label_correct.total) == 0.5
  np.testing.assert_allclose(combined(half, alpha=1.0), 3.5 / 1.5, rtol=1e-6)


def test_a_task_without_tokens_contributes_nothing():
  label_only = np.where(TASKS == LABEL, WEIGHTS, 0).astype(np.float32)
  assert float(combined(sums(weights=label_only), alpha=0.3)) == pytest.approx(0.6)
  each = coefficients(label_only, TASKS, *task_weights(label_only, TASKS), alpha=0.3)
  np.testing.assert_allclose(np.sum(each * LOSSES), 0.6, rtol=1e-6)
  nothing = np.zeros_like(WEIGHTS)
  assert float(combined(sums(weights=nothing), alpha=0.3)) == 0.0
  assert np.all(coefficients(nothing, TASKS, *task_weights(nothing, TASKS), alpha=0.3) == 0)


def test_task_sums_add_field_by_field():
  def each(start):
    return TaskSums(*(LossSum(jnp.float32(start + i), jnp.float32(i)) for i in range(4)))

  total = each(10) + each(100)
  assert [float(part.total) for part in total] == [110.0, 112.0, 114.0, 116.0]
  assert [float(part.weight) for part in total] == [0.0, 2.0, 4.0, 6.0]
