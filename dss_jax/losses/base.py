"""LossSum, a loss as a sum with its weight, and Term, one named part of an objective."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

# (logits_RmV float32, targets_Rm int32) -> the loss of each target position, float32 [R, m].
TokenLoss = Callable[[jax.Array, jax.Array], jax.Array]


class LossSum(NamedTuple):
  """A weighted sum of token losses and the sum of the weights, both float32 scalars.

  Sums of microbatches, hosts and evaluation batches add up exactly; means do not.
  """

  total: jax.Array
  weight: jax.Array

  def __add__(self, other: "LossSum") -> "LossSum":  # type: ignore[override]
    return LossSum(self.total + other.total, self.weight + other.weight)

  def mean(self) -> jax.Array:
    """Returns total / max(weight, 1): zero where there was nothing to predict."""
    return self.total / jnp.maximum(self.weight, 1.0)


@dataclasses.dataclass(frozen=True)
class Term:
  """One term of an objective: weight times the mean of a token loss over some target tokens.

  Attributes:
    name: its name in metrics: `<name>/train_loss`.
    weight: the factor of its mean in the total loss; a negative one makes it a bonus.
    kinds: the target kinds (LABEL, RATIONALE) whose tokens it is a mean over.
    token_loss: a function of the student's logits; None is the cross-entropy of the targets.
  """

  name: str
  weight: float
  kinds: tuple[int, ...]
  token_loss: TokenLoss | None = None

  def token_weights(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the weight of each target token in the term's mean, float32 [R, M]."""
    return jnp.where(self.mask(batch), batch["decoder_loss_weights"], 0.0)

  def denominator(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the summed weights of the term's tokens, a float32 scalar.

    It follows from the batch alone, so that microbatches and hosts can divide by that of the
    whole batch and their losses add up.
    """
    return jnp.sum(batch["decoder_loss_weights"], where=self.mask(batch))

  def mask(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns which target positions are of the term's kinds, bool [R, M]."""
    kinds_RM = batch["decoder_target_kinds"]
    mask_RM = kinds_RM == self.kinds[0]
    for kind in self.kinds[1:]:
      mask_RM |= kinds_RM == kind
    return mask_RM
