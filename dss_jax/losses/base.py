"""LossSum, a loss as a sum with its weight, and the named terms of an objective."""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from dss_jax.losses.signals import NetworkOutputs

# (logits_RmV float32, targets_Rm int32, signal) -> the loss of each target position, float32
# [R, m]. The signal (losses/signals.py) is None for a loss of the student's logits alone.
TokenLoss = Callable[[jax.Array, jax.Array, Any], jax.Array]


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
    source: who gives the next tokens that the token loss compares them with (losses/signals.py);
      None for a loss of the student alone. Such terms are trained on, but not evaluated.
    layer: the decoder layer whose output the student's logits are made of, through the final norm;
      None for the usual logits, dropout included.
    weights_from: the batch's float32 [R, M] array that further weights the tokens, such as
      whether the source knows the position.
  """

  name: str
  weight: float
  kinds: tuple[int, ...]
  token_loss: TokenLoss | None = None
  source: str | None = None
  layer: int | None = None
  weights_from: str | None = None

  def token_weights(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the weight of each target token in the term's mean, float32 [R, M]."""
    return jnp.where(self.mask(batch), self._weights(batch), 0.0)

  def denominator(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the summed weights of the term's tokens, a float32 scalar.

    It follows from the batch alone, so that microbatches and hosts can divide by that of the
    whole batch and their losses add up.
    """
    return jnp.sum(self._weights(batch), where=self.mask(batch))

  def _weights(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    weights_RM = batch["decoder_loss_weights"]
    return weights_RM if self.weights_from is None else weights_RM * batch[self.weights_from]

  def mask(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns which target positions are of the term's kinds, bool [R, M]."""
    kinds_RM = batch["decoder_target_kinds"]
    mask_RM = kinds_RM == self.kinds[0]
    for kind in self.kinds[1:]:
      mask_RM |= kinds_RM == kind
    return mask_RM


class StateLoss(Protocol):
  """A loss of a batch's hidden states, as a sum over what it compares.

  Attributes:
    student_layers, teacher_layers: the states that it reads: the layers' numbers by stack,
      "encoder" and "decoder".
  """

  student_layers: Mapping[str, tuple[int, ...]]
  teacher_layers: Mapping[str, tuple[int, ...]] = types.MappingProxyType({})

  def total(
    self,
    student: NetworkOutputs,
    teacher: NetworkOutputs | None,
    batch: Mapping[str, jax.Array],
    projections: Mapping[str, jax.Array],
  ) -> jax.Array:
    """Computes the sum, a float32 scalar; the gradient flows to student and projections."""

  def denominator(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns what the sum of the whole batch is divided by, from the batch alone."""

  def projections(self, key: jax.Array) -> dict[str, nn.LogicallyPartitioned]:
    """Initialises the weights that are trained beside the student's, with their logical axes."""
    return {}


@dataclasses.dataclass(frozen=True)
class StateTerm:
  """One term of an objective: weight times the mean of a loss of hidden states.

  Attributes:
    name: its name in metrics.
    weight: the factor of its mean in the total loss.
    loss: the loss.
    source: who gives the states that it compares the student's with; None for a loss of the
      student alone.
  """

  name: str
  weight: float
  loss: StateLoss
  source: str | None = None

  def denominator(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    return self.loss.denominator(batch)
