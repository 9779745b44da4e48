"""Entropy by hand, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from dss_jax.losses.entropy import entropy


def test_entropy_by_hand():
  probabilities = jnp.array([[[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]], jnp.float32)
  got = entropy(jnp.log(probabilities) + 3.0, jnp.zeros((1, 2), jnp.int32))
  np.testing.assert_allclose(got, [[1.5 * np.log(2), np.log(3)]], rtol=1e-6)


def test_a_sure_prediction_has_none_and_a_finite_gradient():
  def of_first(logit):
    return entropy(jnp.array([[[logit, 0.0]]]), jnp.zeros((1, 1), jnp.int32))[0, 0]

  assert float(of_first(200.0)) == 0.0
  assert np.isfinite(jax.grad(of_first)(200.0))
