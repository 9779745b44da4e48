"""A bound on the mutual information of labels and rationales, from the student's states."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dss_jax.config.schema import LABEL, RATIONALE, TARGET_KINDS
from dss_jax.losses.base import StateLoss
from dss_jax.losses.pooling import pooled, present
from dss_jax.losses.signals import NetworkOutputs
from dss_jax.model.attention import MASKED

_EPSILON = 1e-12


@dataclasses.dataclass(frozen=True)
class MutualInformationLoss(StateLoss):
  """InfoNCE between the two sequences of an example (van den Oord et al. 2018, equation 4).

  With a_i and b_i the means of the last normed decoder states over the label and the rationale of
  example i, and s_ij = cos(a_i, b_j) / temperature, over the n examples that have both:

  -1/2 sum_i (log softmax_j(s_ij)_i + log softmax_j(s_ji)_i), divided by n.

  log(n) minus the loss is a lower bound of the mutual information of the two in nats. Float32;
  the examples of the whole batch are compared, on all devices.

  Attributes:
    layer: the last decoder layer.
    examples: the most examples in a batch.
  """

  temperature: float
  layer: int
  examples: int

  @property
  def student_layers(self) -> Mapping[str, tuple[int, ...]]:  # type: ignore[override]
    return {"decoder": (self.layer,)}

  def total(
    self,
    student: NetworkOutputs,
    teacher: NetworkOutputs | None,
    batch: Mapping[str, jax.Array],
    projections: Mapping[str, jax.Array],
  ) -> jax.Array:
    """See StateLoss."""
    del teacher, projections
    means_ND = pooled(student, batch, "decoder", self.layer, self.examples)
    by_kind = means_ND.reshape(self.examples, len(TARGET_KINDS), -1)
    labels, rationales = by_kind[:, LABEL], by_kind[:, RATIONALE]
    return info_nce(labels, rationales, self._has_both(batch), self.temperature)

  def denominator(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    """See StateLoss: the number of examples with a label and a rationale."""
    return jnp.sum(self._has_both(batch), dtype=jnp.float32)

  def _has_both(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    found = present(batch, "decoder", self.examples)
    return jnp.all(found.reshape(self.examples, len(TARGET_KINDS)), axis=-1)


def info_nce(
  a_ND: jax.Array, b_ND: jax.Array, counted_N: jax.Array, temperature: float
) -> jax.Array:
  """Computes the sum of MutualInformationLoss over the counted pairs, a float32 scalar."""
  scores_NN = _unit(a_ND) @ _unit(b_ND).T / temperature
  scores_NN = jnp.where(counted_N[:, None] & counted_N, scores_NN, MASKED)
  both = jax.nn.log_softmax(scores_NN, axis=1) + jax.nn.log_softmax(scores_NN, axis=0)
  return -0.5 * jnp.sum(jnp.diagonal(both), where=counted_N)


def _unit(x: jax.Array) -> jax.Array:
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + _EPSILON)
