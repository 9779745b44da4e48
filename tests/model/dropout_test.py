"""Dropout: its share, its scale, and masks that share nothing but their key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dss_jax.model.dropout import Dropout, dropped

RATE = 0.1
SHAPE = (500, 4, 500)


def mask(key, shape=SHAPE):
  return np.asarray(dropped(jnp.ones(shape), RATE, key)) == 0


def deviations(products, expected):
  """How many standard deviations the mean of independent draws of 0 and 1 is off."""
  spread = np.sqrt(expected * (1 - expected) / products.size)
  return abs(products.mean() - expected) / spread


def test_it_zeroes_its_share_and_scales_the_rest():
  got = np.asarray(dropped(jnp.ones(SHAPE), RATE, jax.random.key(0)))
  assert deviations(got == 0, RATE) < 4
  np.testing.assert_allclose(got[got != 0], 1 / (1 - RATE), rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_no_index_is_dropped_more_than_another(axis):
  others = tuple({0, 1, 2} - {axis})
  shares = mask(jax.random.key(3)).mean(axis=others)
  spread = np.sqrt(RATE * (1 - RATE) * shares.size / np.prod(SHAPE))
  assert abs(shares - RATE).max() < 5 * spread


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 8, 500, 512, 2000])
def test_neighbours_are_independent(distance):
  flat = mask(jax.random.key(0)).ravel()
  assert deviations(flat[distance:] & flat[:-distance], RATE**2) < 5


@pytest.mark.parametrize(
  "other",
  [
    jax.random.key(1),
    jax.random.fold_in(jax.random.key(0), 1),
    jax.random.wrap_key_data(jax.random.key_data(jax.random.key(0)) ^ jnp.uint32([1, 0])),
    jax.random.wrap_key_data(jax.random.key_data(jax.random.key(0)) ^ jnp.uint32([0, 1])),
    jax.random.wrap_key_data(jax.random.key_data(jax.random.key(0)) ^ jnp.uint32([0, 2**31])),
  ],
)
def test_masks_of_other_keys_are_independent(other):
  assert deviations(mask(jax.random.key(0)) & mask(other), RATE**2) < 5


def test_each_device_draws_its_part_of_the_same_mask():
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
  split = NamedSharding(mesh, PartitionSpec("data", "model"))
  draw = jax.jit(lambda x: dropped(x, RATE, jax.random.key(0)), out_shardings=split)
  ones = jax.device_put(jnp.ones((8, 4, 16)), split)
  np.testing.assert_array_equal(draw(ones), dropped(jnp.ones((8, 4, 16)), RATE, jax.random.key(0)))
  assert "all-" not in draw.lower(ones).compile().as_text()


def test_it_is_off_when_deterministic_or_at_rate_0():
  x = jnp.ones((4, 5))
  np.testing.assert_array_equal(Dropout(0.5).apply({}, x, True), x)
  np.testing.assert_array_equal(Dropout(0.0).apply({}, x, False), x)


def test_it_follows_its_key_and_keeps_the_dtype():
  x = jnp.ones((64, 64), jnp.bfloat16)
  first, again, other = (
    Dropout(0.5).apply({}, x, False, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)
  )
  assert first.dtype == jnp.bfloat16
  assert jnp.array_equal(first, again)
  assert not jnp.array_equal(first, other)
