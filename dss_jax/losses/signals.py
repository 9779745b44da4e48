"""What a network or a file gives about a batch, as data that losses take; no loss knows its maker.

Shapes: R rows, M target positions (m in a chunk of them), D width, V vocabulary, K words kept.
"""

import dataclasses
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from dss_jax.config.schema import T5Config
from dss_jax.model.t5 import Outputs, output_kernel

# Who gives a signal: a teacher network, the average of the student's weights, the student's own
# last layer, a file of logits.
Source = Literal["teacher", "average", "student", "file"]
# Log probabilities of a teacher and of the student over the same outcomes, float32 [R, m, O].
Outcomes = tuple[jax.Array, jax.Array]

# The batch's array of 1 where a file has read the same text as the student, and 0 elsewhere.
ALIGNED = "teacher_aligned"

# The least probability of the words outside a sparse distribution, which float32 cannot resolve.
_LEAST_TAIL = 1e-7


class Signal(Protocol):
  """What is known of a teacher's next token, at each target position or at a chunk of them."""

  def split(self) -> tuple[Any, Any]:
    """Returns the arrays [R, M, ...], which are cut into chunks, and what all chunks share."""

  def joined(self, shared: Any) -> Any:
    """Returns the whole signal of a chunk."""


class NextTokens(Signal, Protocol):
  """A teacher's distribution of the next token."""

  def outcomes(self, logits_RmV: jax.Array, temperature: float) -> Outcomes:
    """Returns log probabilities, the teacher's and the student's, at a temperature."""


@struct.dataclass
class NetworkOutputs:
  """What a network computed of a batch.

  Attributes:
    hidden_RMD: the decoder states before the logits.
    kernel_DV: the matrix from those to logits, float32.
    encoder, decoder: the states of the layers that were kept, by the layer's number.
    params, config: the network itself, for products that a loss makes of its states.
  """

  hidden_RMD: jax.Array
  kernel_DV: jax.Array
  encoder: dict[int, jax.Array] = struct.field(default_factory=dict)
  decoder: dict[int, jax.Array] = struct.field(default_factory=dict)
  params: Any = None
  config: T5Config | None = struct.field(pytree_node=False, default=None)

  @classmethod
  def of(cls, outputs: Outputs, params: Any, config: T5Config) -> "NetworkOutputs":
    kernel_DV = output_kernel(params, config)
    return cls(outputs.hidden_BMD, kernel_DV, outputs.encoder, outputs.decoder, params, config)

  def next_tokens(self) -> "DenseLogits":
    return DenseLogits(self.hidden_RMD, self.kernel_DV)

  def states(self, stack: str) -> dict[int, jax.Array]:
    return self.encoder if stack == "encoder" else self.decoder


@struct.dataclass
class DenseLogits:
  """A network's logits over the whole vocabulary: a product that a chunk at a time is made of."""

  hidden_RMD: jax.Array
  kernel_DV: jax.Array | None

  def split(self) -> tuple["DenseLogits", jax.Array | None]:
    return dataclasses.replace(self, kernel_DV=None), self.kernel_DV

  def joined(self, shared: jax.Array) -> "DenseLogits":
    return dataclasses.replace(self, kernel_DV=shared)

  def outcomes(self, logits_RmV: jax.Array, temperature: float) -> Outcomes:
    """See NextTokens. Embedding rows that only one of the two has are padding and left out."""
    assert self.kernel_DV is not None
    words = min(self.kernel_DV.shape[1], logits_RmV.shape[-1])
    return (
      jax.nn.log_softmax(self.logits(words) / temperature),
      jax.nn.log_softmax(logits_RmV[..., :words] / temperature),
    )

  def logits(self, words: int) -> jax.Array:
    """Computes the logits of the first words, float32 [R, M, words]."""
    assert self.kernel_DV is not None
    return jnp.einsum(
      "rmd,dv->rmv",
      self.hidden_RMD,
      self.kernel_DV[:, :words].astype(self.hidden_RMD.dtype),
      preferred_element_type=jnp.float32,
    )


@struct.dataclass
class SparseLogits:
  """The likeliest next tokens and their probabilities; the others are one outcome, the tail.

  Attributes:
    ids_RMK: int32.
    log_probabilities_RMK: float32, at the temperature of the file, the likeliest first.
    words: the teacher's number of words; a student's further embedding rows are padding.
  """

  ids_RMK: jax.Array
  log_probabilities_RMK: jax.Array
  words: int = struct.field(pytree_node=False)

  def split(self) -> tuple["SparseLogits", None]:
    return self, None

  def joined(self, shared: None) -> "SparseLogits":
    return self

  def outcomes(self, logits_RmV: jax.Array, temperature: float) -> Outcomes:
    """See NextTokens: the K words, then the tail. The teacher's are of the file's temperature."""
    every = jax.nn.log_softmax(logits_RmV[..., : self.words] / temperature)
    student_RmK = jnp.take_along_axis(every, self.ids_RMK, axis=-1)
    if self.ids_RMK.shape[-1] == self.words:
      return self.log_probabilities_RMK, student_RmK
    return _with_tail(self.log_probabilities_RMK), _with_tail(student_RmK)

  def sorted_probabilities(self) -> jax.Array:
    """Returns the largest probabilities, falling, float32 [R, M, K]."""
    return jnp.exp(self.log_probabilities_RMK)


@struct.dataclass
class SampledLogits:
  """Next tokens drawn from a teacher's distribution (Anshumann et al. 2025).

  Attributes:
    ids_RMK: int32, the distinct words that were drawn; the others are 0.
    counts_RMK: float32, how often each was drawn; 0 for those others.
    entropy_RM: float32, of the whole distribution.
    draws, words: the number of draws of each position, and of the teacher's words.
  """

  ids_RMK: jax.Array
  counts_RMK: jax.Array
  entropy_RM: jax.Array
  draws: int = struct.field(pytree_node=False)
  words: int = struct.field(pytree_node=False)

  def split(self) -> tuple["SampledLogits", None]:
    return self, None

  def joined(self, shared: None) -> "SampledLogits":
    return self

  def forward_kl(self, logits_RmV: jax.Array, temperature: float) -> jax.Array:
    """Computes an estimate of KL(q || p) at each position, float32 [R, m].

    -H(q) - sum_k counts_k / draws * log p_k. The expectation over the draws is the divergence,
    and that of its gradient the divergence's; one estimate may be negative.
    """
    every = jax.nn.log_softmax(logits_RmV[..., : self.words] / temperature)
    student_RmK = jnp.take_along_axis(every, self.ids_RMK, axis=-1)
    return -self.entropy_RM - jnp.sum(self.counts_RMK * student_RmK, axis=-1) / self.draws


@struct.dataclass
class SortedProbabilities:
  """A teacher's largest next-token probabilities, whatever their words are.

  Attributes:
    probabilities_RMK: float32, falling.
  """

  probabilities_RMK: jax.Array

  def split(self) -> tuple["SortedProbabilities", None]:
    return self, None

  def joined(self, shared: None) -> "SortedProbabilities":
    return self

  def sorted_probabilities(self) -> jax.Array:
    return self.probabilities_RMK


def _with_tail(log_probabilities: jax.Array) -> jax.Array:
  rest = 1.0 - jnp.sum(jnp.exp(log_probabilities), axis=-1, keepdims=True)
  tail = jnp.log(jnp.maximum(rest, _LEAST_TAIL))
  return jnp.concatenate([log_probabilities, tail], axis=-1)


Signals = dict[str, Any]
