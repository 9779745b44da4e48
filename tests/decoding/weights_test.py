"""Matrices in their stored types, and their memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.decoding.weights import Matrix, decoding_weights, encoder_params, stored_bytes
from tests.fixtures.networks import TINY

CONFIG = dataclasses.replace(TINY, vocab_size=64)


def test_int8_rounds_to_127_steps_of_each_outputs_largest_weight():
  matrix = Matrix.of(jnp.array([[1.0, -0.5, 0.26], [0.0, 0.0, 0.0], [0.02, 0.01, -0.04]]), "int8")
  assert matrix.values.dtype == jnp.int8
  np.testing.assert_array_equal(matrix.values, [[127, -64, 33], [0, 0, 0], [64, 32, -127]])
  np.testing.assert_allclose(matrix.scales[:, 0], [1 / 127, 1 / 127, 0.04 / 127])


@pytest.mark.parametrize(("kind", "error"), [("float32", 1e-6), ("bfloat16", 0.02), ("int8", 0.03)])
def test_products_are_those_of_the_whole_matrix(kind, error):
  generator = np.random.default_rng(0)
  values = generator.normal(size=(2, 5, 8)).astype(np.float32)
  x_DB = generator.normal(size=(8, 3)).astype(np.float32)
  matrix = Matrix.of(jnp.asarray(values), kind)
  whole = np.asarray(matrix.whole(jnp.float32))
  np.testing.assert_allclose(whole, values, atol=error)
  assert matrix.values.dtype == kind
  np.testing.assert_allclose(matrix @ x_DB, whole @ x_DB, atol=1e-5)
  np.testing.assert_allclose(matrix.of_rows(x_DB.T), whole @ x_DB, atol=1e-5)
  table = Matrix.of(jnp.asarray(values[0]), kind)
  np.testing.assert_array_equal(
    table.rows(jnp.array([3, 0]), jnp.float32), table.whole(jnp.float32)[jnp.array([3, 0])]
  )


def test_memory(random_params):
  params = random_params(CONFIG)
  size = {
    kind: stored_bytes(
      jax.eval_shape(functools.partial(decoding_weights, config=CONFIG, weight_type=kind), params)
    )
    for kind in ("float32", "bfloat16", "int8")
  }
  weights = sum(leaf.size for leaf in jax.tree.leaves(params))
  # The position bias stands in every layer.
  assert size["float32"] <= 4 * (weights + 2 * 32)
  assert size["bfloat16"] < 0.54 * size["float32"]
  assert size["int8"] < 0.37 * size["float32"]


def test_the_encoder_takes_no_further_memory(random_params):
  params = jax.tree.map(jnp.asarray, random_params(CONFIG))
  kept = encoder_params(decoding_weights(params, CONFIG))
  pointers = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)}
  assert {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(kept)} <= pointers
