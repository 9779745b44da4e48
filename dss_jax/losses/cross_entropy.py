"""Cross-entropy from hidden states, fused with the projection onto the vocabulary.

Logits exist for a chunk of positions at a time. The gradient with respect to hidden states
and kernel is computed in the same pass over the chunk, so that no logits are kept and none are
computed twice: a differentiated call costs three matrix products, the least possible. Other
losses of the same logits are computed in that pass, too.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from dss_jax.losses.base import TokenLoss
from dss_jax.losses.signals import Signal

# A chunk's float32 logits stay below this on one device, unless one position exceeds it.
CHUNK_BYTES = 128 * 2**20


class TokenLosses(NamedTuple):
  """The figures of each target position: float32 [R, M] each, without gradient."""

  loss: jax.Array
  correct: jax.Array
  extra: tuple[jax.Array, ...] = ()


@jax.named_scope("cross_entropy")
def cross_entropy(
  hidden_RMD: jax.Array,
  kernel_DV: jax.Array,
  targets_RM: jax.Array,
  token_weights_RM: jax.Array,
  *,
  extra: Sequence[tuple[TokenLoss, jax.Array, Signal | None]] = (),
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
  shards: int = 1,
) -> tuple[jax.Array, TokenLosses]:
  """Computes sum(token_weights * loss), a float32 scalar, and each position's figures.

  loss = logsumexp(x) - sum_v soft_v x_v - c + z_loss * logsumexp(x)^2, with x the logits
  hidden @ kernel in float32, soft = 1 - label_smoothing on the target and the rest shared
  by the other words, and c the constant that makes the least loss zero (as T5X's
  cross_entropy_with_logits). `correct` is 1 where the target is the first largest logit.
  The extra losses are added to the scalar, each with its own token weights.

  The gradient flows to hidden states and kernel through the scalar alone.

  Args:
    hidden_RMD: any float dtype; the gradient has the same.
    kernel_DV: float32.
    targets_RM: int32.
    token_weights_RM: float32, the weight of each position; 0 for padding.
    extra: other losses of the logits, each with the float32 [R, M] weights of its positions and
      the teacher's next tokens, which get no gradient, or None.
    shards: the number of devices that a chunk's logits are sharded over; more lets chunks be
      larger.
  """
  length = hidden_RMD.shape[1]
  bytes_a_position = 4 * hidden_RMD.shape[0] * kernel_DV.shape[1] / shards
  chunks = math.ceil(length * bytes_a_position / CHUNK_BYTES)
  signals = [None if signal is None else signal.split() for _, _, signal in extra]
  total, *losses = _fused(
    hidden_RMD,
    kernel_DV,
    targets_RM,
    (token_weights_RM, *(weights_RM for _, weights_RM, _ in extra)),
    jax.lax.stop_gradient(signals),
    tuple(token_loss for token_loss, _, _ in extra),
    label_smoothing,
    z_loss,
    min(max(chunks, 1), length),
  )
  return total, TokenLosses(*jax.lax.stop_gradient(tuple(losses)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def _fused(hidden, kernel, targets, token_weights, signals, extra, label_smoothing, z_loss, chunks):
  by_position, shared = _split(signals)

  def visit(carry, chunk):
    hidden_RmD, targets_Rm, signals = chunk
    logits = _logits(hidden_RmD, kernel)
    loss, correct, *_ = _token_losses(logits, targets_Rm, label_smoothing, z_loss)
    extra_losses = [
      token_loss(logits, targets_Rm, signal)
      for token_loss, signal in zip(extra, _joined(signals, shared), strict=True)
    ]
    return carry, (loss, correct, tuple(extra_losses))

  _, losses = _scan(visit, None, (hidden, targets, by_position), chunks)
  return _total(losses, token_weights), *losses


def _fused_forward(
  hidden, kernel, targets, token_weights, signals, extra, label_smoothing, z_loss, chunks
):
  by_position, shared = _split(signals)

  def visit(kernel_gradient, chunk):
    hidden_RmD, targets_Rm, (token_weights_Rm, *extra_weights), signals = chunk
    logits = _logits(hidden_RmD, kernel)
    loss, correct, log_z, probability = _token_losses(logits, targets_Rm, label_smoothing, z_loss)
    confidence, low = _soft_target(label_smoothing, logits.shape[-1])
    soft = jnp.where(_words(logits) == targets_Rm[..., None], confidence, low)
    gradient = probability * (1.0 + 2.0 * z_loss * log_z)[..., None] - soft
    gradient = gradient * token_weights_Rm[..., None]
    extra_losses = []
    for token_loss, weights_Rm, signal in zip(
      extra, extra_weights, _joined(signals, shared), strict=True
    ):
      extra_loss, pull_back = jax.vjp(
        lambda x, token_loss=token_loss, signal=signal: token_loss(x, targets_Rm, signal), logits
      )
      extra_gradient = pull_back(weights_Rm)[0]
      gradient += extra_gradient
      extra_losses.append(extra_loss)
    gradient = gradient.astype(hidden.dtype)
    hidden_gradient = jnp.einsum("rmv,dv->rmd", gradient, kernel.astype(hidden.dtype))
    kernel_gradient += jnp.einsum(
      "rmd,rmv->dv", hidden_RmD, gradient, preferred_element_type=jnp.float32
    )
    return kernel_gradient, (loss, correct, tuple(extra_losses), hidden_gradient)

  kernel_gradient, (*losses, hidden_gradient) = _scan(
    visit, jnp.zeros_like(kernel), (hidden, targets, token_weights, by_position), chunks
  )
  residuals = (hidden_gradient, kernel_gradient, targets.shape)
  return (_total(losses, token_weights), *losses), residuals


def _fused_backward(extra, label_smoothing, z_loss, chunks, residuals, cotangents):
  hidden_gradient, kernel_gradient, shape = residuals
  scale = cotangents[0]
  return (
    hidden_gradient * scale.astype(hidden_gradient.dtype),
    kernel_gradient * scale,
    jnp.zeros(shape, jax.dtypes.float0),
    (jnp.zeros(shape, jnp.float32),) * (1 + len(extra)),
    None,
  )


_fused.defvjp(_fused_forward, _fused_backward)


def _split(signals):
  """The signals' arrays by position, and what all chunks of each share."""
  parts = [(None, None) if signal is None else signal for signal in signals]
  return [by_position for by_position, _ in parts], [shared for _, shared in parts]


def _joined(signals, shared):
  return [
    None if signal is None else signal.joined(common)
    for signal, common in zip(signals, shared, strict=True)
  ]


def _total(losses, token_weights):
  """The sum of all losses times their weights."""
  loss, _, extra_losses = losses
  total = jnp.sum(loss * token_weights[0])
  for extra_loss, weights in zip(extra_losses, token_weights[1:], strict=True):
    total += jnp.sum(extra_loss * weights)
  return total


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
  """The probability that the loss wants for the target, and for each other token."""
  return 1.0 - label_smoothing, label_smoothing / (words - 1)


def _words(logits: jax.Array) -> jax.Array:
  """The vocabulary index of each logit."""
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
  """lax.scan of `visit` over chunks of axis 1; the outputs are concatenated along axis 1."""
  length = arrays[0].shape[1]
  if chunks == 1:
    return visit(carry, arrays)
  size = math.ceil(length / chunks)
  chunks = math.ceil(length / size)
  padding = chunks * size - length

  def split(x):
    x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], chunks, size, *x.shape[2:]), 1, 0)

  def concatenate(x):
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], chunks * size, *x.shape[3:])[:, :length]

  carry, outputs = jax.lax.scan(visit, carry, jax.tree.map(split, arrays))
  return carry, jax.tree.map(concatenate, outputs)
