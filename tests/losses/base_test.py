"""LossSum: sums that add up exactly and are divided once."""

import jax
import jax.numpy as jnp
import numpy as np

from dss_jax.losses.base import LossSum


def loss_sum(total, weight):
  return LossSum(jnp.float32(total), jnp.float32(weight))


def test_sums_of_uneven_parts_give_the_mean_of_the_whole():
  """A mean of the two means would be 3.5."""
  together = loss_sum(2.0, 1.0) + loss_sum(15.0, 3.0)
  assert (float(together.total), float(together.weight)) == (17.0, 4.0)
  assert float(together.mean()) == 4.25


def test_the_mean_of_nothing_is_zero_and_so_is_its_gradient():
  assert float(loss_sum(0.0, 0.0).mean()) == 0.0
  gradient = jax.grad(lambda total: LossSum(total, jnp.float32(0)).mean())(jnp.float32(0))
  assert np.isfinite(gradient)


def test_it_is_a_tree_of_two_numbers():
  doubled = jax.jit(lambda each: each + each)(loss_sum(1.5, 2.0))
  assert isinstance(doubled, LossSum)
  assert (float(doubled.total), float(doubled.weight)) == (3.0, 4.0)
