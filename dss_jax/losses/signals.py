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

# The least probability of the words outside a sparse distribution, which float32 cannot resolve.
_LEAST_TAIL = 1e-7


class NextTokens(Protocol):
  """A teacher's distribution of the next token, at each target position or at a chunk of them."""

  def split(self) -> tuple["NextTokens", Any]:
    """Returns the arrays [R, M, ...], which are cut into chunks, and what all chunks share."""

  def joined(self, shared: Any) -> "NextTokens":
    """Returns the whole signal of a chunk."""

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
    teacher_RmV = jnp.einsum(
      "rmd,dv->rmv",
      self.hidden_RMD,
      self.kernel_DV[:, :words].astype(self.hidden_RMD.dtype),
      preferred_element_type=jnp.float32,
    )
    return (
      jax.nn.log_softmax(teacher_RmV / temperature),
      jax.nn.log_softmax(logits_RmV[..., :words] / temperature),
    )


@struct.dataclass
class SparseLogits:
  """The likeliest next tokens and their probabilities; the others are one outcome, the tail.

  Attributes:
    ids_RMK: int32.
    log_probabilities_RMK: float32, at the temperature of the file.
  """

  ids_RMK: jax.Array
  log_probabilities_RMK: jax.Array

  def split(self) -> tuple["SparseLogits", None]:
    return self, None

  def joined(self, shared: None) -> "SparseLogits":
    return self

  def outcomes(self, logits_RmV: jax.Array, temperature: float) -> Outcomes:
    """See NextTokens: the K words, then the tail. The teacher's are of the file's temperature."""
    every = jax.nn.log_softmax(logits_RmV / temperature)
    student_RmK = jnp.take_along_axis(every, self.ids_RMK, axis=-1)
    return _with_tail(self.log_probabilities_RMK), _with_tail(student_RmK)


def _with_tail(log_probabilities: jax.Array) -> jax.Array:
  rest = 1.0 - jnp.sum(jnp.exp(log_probabilities), axis=-1, keepdims=True)
  tail = jnp.log(jnp.maximum(rest, _LEAST_TAIL))
  return jnp.concatenate([log_probabilities, tail], axis=-1)


Signals = dict[str, Any]
