"""Cross-entropy from hidden states, fused with the projection onto the vocabulary.

Logits exist for a chunk of positions at a time. The gradient with respect to hidden states
and kernel is worked out in the same visit of the chunk, so that no logits are kept and none
are computed twice: a differentiated call costs the three matrix products it must.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

# A chunk's float32 logits stay below this on one device, unless one position exceeds it.
CHUNK_BYTES = 128 * 2**20


class TokenLosses(NamedTuple):
  """What each target position came to: float32 [R, M] each, without gradient."""

  loss: jax.Array
  correct: jax.Array


@jax.named_scope("cross_entropy")
def cross_entropy(
  hidden_RMD: jax.Array,
  kernel_DV: jax.Array,
  targets_RM: jax.Array,
  coefficients_RM: jax.Array,
  *,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
  shards: int = 1,
) -> tuple[jax.Array, TokenLosses]:
  """sum(coefficients * loss), a float32 scalar, and each position's loss and correctness.

  loss = logsumexp(x) - sum_v soft_v x_v - c + z_loss * logsumexp(x)^2, with x the logits
  hidden @ kernel in float32, soft = 1 - label_smoothing on the target and the rest shared
  by the other words, and c the constant that makes the least loss zero (as T5X's
  cross_entropy_with_logits). `correct` is 1 where the target is the first largest logit.

  The gradient flows to hidden states and kernel through the scalar alone.

  Args:
    hidden_RMD: any float dtype; the gradient has the same.
    kernel_DV: float32.
    targets_RM: int32.
    coefficients_RM: float32, the weight of each position; 0 for padding.
    shards: over how many devices a chunk's logits are spread, which lets chunks be larger.
  """
  length = hidden_RMD.shape[1]
  bytes_a_position = 4 * hidden_RMD.shape[0] * kernel_DV.shape[1] / shards
  chunks = math.ceil(length * bytes_a_position / CHUNK_BYTES)
  total, loss, correct = _fused(
    hidden_RMD,
    kernel_DV,
    targets_RM,
    coefficients_RM,
    label_smoothing,
    z_loss,
    min(max(chunks, 1), length),
  )
  return total, TokenLosses(jax.lax.stop_gradient(loss), jax.lax.stop_gradient(correct))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _fused(hidden, kernel, targets, coefficients, label_smoothing, z_loss, chunks):
  def visit(carry, chunk):
    hidden_RmD, targets_Rm, _ = chunk
    logits = _logits(hidden_RmD, kernel)
    return carry, _token_losses(logits, targets_Rm, label_smoothing, z_loss)[:2]

  _, (loss, correct) = _scan(visit, None, (hidden, targets, coefficients), chunks)
  return jnp.sum(loss * coefficients), loss, correct


def _fused_forward(hidden, kernel, targets, coefficients, label_smoothing, z_loss, chunks):
  def visit(kernel_gradient, chunk):
    hidden_RmD, targets_Rm, coefficients_Rm = chunk
    logits = _logits(hidden_RmD, kernel)
    loss, correct, log_z, probability = _token_losses(logits, targets_Rm, label_smoothing, z_loss)
    confidence, low = _soft_target(label_smoothing, logits.shape[-1])
    soft = jnp.where(_words(logits) == targets_Rm[..., None], confidence, low)
    gradient = probability * (1.0 + 2.0 * z_loss * log_z)[..., None] - soft
    gradient = (gradient * coefficients_Rm[..., None]).astype(hidden.dtype)
    hidden_gradient = jnp.einsum("rmv,dv->rmd", gradient, kernel.astype(hidden.dtype))
    kernel_gradient += jnp.einsum(
      "rmd,rmv->dv", hidden_RmD, gradient, preferred_element_type=jnp.float32
    )
    return kernel_gradient, (loss, correct, hidden_gradient)

  kernel_gradient, (loss, correct, hidden_gradient) = _scan(
    visit, jnp.zeros_like(kernel), (hidden, targets, coefficients), chunks
  )
  total = jnp.sum(loss * coefficients)
  return (total, loss, correct), (hidden_gradient, kernel_gradient, targets.shape)


def _fused_backward(label_smoothing, z_loss, chunks, residuals, cotangents):
  hidden_gradient, kernel_gradient, shape = residuals
  scale = cotangents[0]
  return (
    hidden_gradient * scale.astype(hidden_gradient.dtype),
    kernel_gradient * scale,
    jnp.zeros(shape, jax.dtypes.float0),
    jnp.zeros(shape, jnp.float32),
  )


_fused.defvjp(_fused_forward, _fused_backward)


def _logits(hidden_RmD: jax.Array, kernel_DV: jax.Array) -> jax.Array:
  """Float32 logits; bfloat16 hidden states are multiplied as such and summed in float32."""
  logits = jnp.einsum(
    "rmd,dv->rmv",
    hidden_RmD,
    kernel_DV.astype(hidden_RmD.dtype),
    preferred_element_type=jnp.float32,
  )
  return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))


def _soft_target(label_smoothing: float, words: int) -> tuple[float, float]:
  """What is asked of the target's probability, and of that of each other word."""
  return 1.0 - label_smoothing, label_smoothing / (words - 1)


def _words(logits: jax.Array) -> jax.Array:
  """The number of the word that each logit is of."""
  return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)


def _token_losses(logits, targets_Rm, label_smoothing, z_loss):
  """(loss, correct, logsumexp) of each position, [R, m], and the softmax, [R, m, V].

  On a CPU, whatever is summed over the words is written to memory first: so there is one array
  of exponentials, and the target's logit is looked up.
  """
  words = logits.shape[-1]
  confidence, low = _soft_target(label_smoothing, words)
  least = -(confidence * math.log(confidence) + (words - 1) * low * math.log(low + 1e-20))
  largest = jnp.max(logits, axis=-1, keepdims=True)
  exponential = jnp.exp(logits - largest)
  total = jnp.sum(exponential, axis=-1, keepdims=True)
  log_z = (jnp.log(total) + largest)[..., 0]
  of_target = jnp.take_along_axis(logits, targets_Rm[..., None], axis=-1)[..., 0]
  expected = (confidence - low) * of_target
  if label_smoothing:
    expected += low * jnp.sum(logits, axis=-1)
  loss = log_z - expected - least + z_loss * jnp.square(log_z)
  # What argmax gives; on a CPU, XLA's own takes one word at a time.
  first_largest = jnp.min(jnp.where(logits == largest, _words(logits), words), axis=-1)
  correct = (first_largest == targets_Rm).astype(jnp.float32)
  return loss, correct, log_z, exponential / total


def _scan(visit, carry, arrays, chunks):
  """lax.scan of `visit` over chunks of axis 1; the outputs are put together along axis 1."""
  length = arrays[0].shape[1]
  if chunks == 1:
    return visit(carry, arrays)
  size = math.ceil(length / chunks)
  chunks = math.ceil(length / size)
  padding = chunks * size - length

  def split(x):
    x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], chunks, size, *x.shape[2:]), 1, 0)

  def join(x):
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], chunks * size, *x.shape[3:])[:, :length]

  carry, outputs = jax.lax.scan(visit, carry, tuple(map(split, arrays)))
  return carry, tuple(map(join, outputs))
