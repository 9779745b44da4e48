"""LossSum: a loss as a sum with its weight, divided once, at the very end."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LossSum(NamedTuple):
  """A weighted sum of token losses and the sum of the weights, both float32 scalars.

  Sums of microbatches, hosts and evaluation batches add up exactly, which means do not.
  """

  total: jax.Array
  weight: jax.Array

  def __add__(self, other: "LossSum") -> "LossSum":  # type: ignore[override]
    return LossSum(self.total + other.total, self.weight + other.weight)

  def mean(self) -> jax.Array:
    """total / max(weight, 1): zero where there was nothing to predict."""
    return self.total / jnp.maximum(self.weight, 1.0)
