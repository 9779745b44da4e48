"""Distances and angles between the sequences of a batch, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dss_jax.config.kinds import RelationConfig
from dss_jax.losses.relation import (
  RelationLoss,
  angle_differences,
  distance_differences,
  relation_terms,
)

BOTH = [distance_differences, angle_differences]
# A right triangle and one with equal sides; the third sequence is absent.
X = np.array([[0.0, 0.0], [3.0, 0.0], [9.0, 9.0], [0.0, 4.0]], np.float32)
Y = np.array([[0.0, 0, 0], [1.0, 0, 0], [5.0, 5, 5], [0.5, np.sqrt(0.75), 0]], np.float32)
PRESENT = np.array([True, True, False, True])


def test_distances_by_hand():
  # Sides 3, 4, 5 of mean 4, against 1, 1, 1; each pair in both orders.
  by_hand = 2 * 0.5 * (0.25**2 + 0.0 + 0.25**2)
  np.testing.assert_allclose(distance_differences(X, Y, PRESENT), by_hand, rtol=1e-5)


def test_angles_by_hand():
  # Cosines 0, 3/5 and 4/5 against 1/2 each; i and k in both orders.
  by_hand = 2 * 0.5 * (0.5**2 + 0.1**2 + 0.3**2)
  np.testing.assert_allclose(angle_differences(X, Y, PRESENT), by_hand, rtol=1e-4)


def test_large_differences_count_linearly():
  # 0, 1 and 19 on a line, of distances 1, 18 and 19: relative to the mean 0.079, 1.42 and 1.5.
  line = np.array([[0.0], [1.0], [19.0]], np.float32)
  same = np.array([[0.0, 0], [1.0, 0], [0.5, np.sqrt(0.75)]], np.float32)
  mean = 38 / 3
  apart = np.abs(np.array([1, 18, 19]) / mean - 1)
  by_hand = 2 * np.sum(np.where(apart <= 1, 0.5 * apart**2, apart - 0.5))
  np.testing.assert_allclose(distance_differences(line, same, np.ones(3, bool)), by_hand, rtol=1e-5)


@pytest.mark.parametrize("differences", BOTH)
def test_zero_for_a_larger_turned_and_moved_copy(differences):
  turn = np.array([[0.0, 1.0], [-1.0, 0.0]], np.float32)
  same = 3.0 * X @ turn + 5.0
  np.testing.assert_allclose(differences(X, same, PRESENT), 0.0, atol=1e-5)


@pytest.mark.parametrize("differences", BOTH)
def test_numerical_gradient(differences):
  x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
  y = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
  present = np.array([True, True, False, True, True])
  of_x = jax.jit(lambda x: differences(x, y, present))
  check_grads(of_x, (x,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)
  gradient = jax.jit(jax.grad(differences))(x, y, present)
  assert not np.any(gradient[2])


@pytest.mark.parametrize("differences", BOTH)
@pytest.mark.parametrize("present", [[False] * 4, [True, False, False, False], [True] * 4])
def test_equal_and_missing_sequences_have_a_gradient(differences, present):
  x = jnp.ones((4, 2))
  gradient = jax.jit(jax.grad(differences))(x, jnp.asarray(Y), jnp.asarray(present))
  assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(("relation", "count"), [("distance", 4 * 3), ("angle", 4 * 3 * 2)])
def test_the_mean_is_over_pairs_or_triples(relation, count):
  # Two labels and two rationales of up to three examples, one in parts of two rows.
  batch = {"decoder_sequence_ids": np.array([[1, 1, 2, 0], [5, 2, 2, 6]], np.int32)}
  assert float(RelationLoss(relation, "decoder", (1, 1), 3).denominator(batch)) == count


def test_terms(make_config):
  model = make_config().model

  def terms(**settings):
    return relation_terms(
      "relation", 25.0, RelationConfig(**settings), model, model, "teacher", examples=4
    )

  assert [(term.name, term.weight) for term in terms()] == [
    ("relation_distance", 25.0),
    ("relation_angle", 50.0),
  ]
  assert [term.name for term in terms(angle_weight=0.0)] == ["relation_distance"]
