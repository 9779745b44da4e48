"""Greedy decoding: the most likely next token at each step."""

from typing import Any

import jax
import jax.numpy as jnp

from dss_jax.config.schema import T5Config
from dss_jax.decoding.decoder import decode_batch
from dss_jax.decoding.weights import DecodingWeights, decoding_weights


def most_likely(logits_VB: jax.Array) -> jax.Array:
  """Returns each row's most likely token, the first of equal ones: int32 [B]."""
  return jax.lax.platform_dependent(
    logits_VB,
    cpu=_most_likely_by_halves,
    default=lambda logits: jnp.argmax(logits, axis=0).astype(jnp.int32),
  )


def _most_likely_by_halves(logits_VB: jax.Array) -> jax.Array:
  """Compares the halves of the vocabulary until their length is odd.

  A CPU compares whole vectors so, while it computes an argmax number by number.
  """
  values = logits_VB
  tokens = jnp.broadcast_to(jnp.arange(len(values), dtype=jnp.int32)[:, None], values.shape)
  while len(values) % 2 == 0:
    half = len(values) // 2
    first, second = values[:half], values[half:]
    first_tokens, second_tokens = tokens[:half], tokens[half:]
    take_second = (second > first) | ((second == first) & (second_tokens < first_tokens))
    values = jnp.where(take_second, second, first)
    tokens = jnp.where(take_second, second_tokens, first_tokens)
  best = jnp.max(values, axis=0)
  return jnp.min(jnp.where(values == best, tokens, len(logits_VB) - 1), axis=0)


def greedy(
  params: Any,
  config: T5Config,
  encoder_input_tokens_BL: jax.Array,
  *,
  max_decode_tokens: int,
  eos_id: int,
  pad_id: int,
  start_tokens_B: jax.Array | None = None,
) -> jax.Array:
  """Decodes the most likely next token at each step, int32 [B, max_decode_tokens].

  A row is padded after its end token; see decode_batch.

  Args:
    params: the network's parameters, or its DecodingWeights.
    start_tokens_B: tokens to start from in place of the pad token.
  """
  if not isinstance(params, DecodingWeights):
    params = decoding_weights(params, config)
  return decode_batch(
    params,
    config,
    encoder_input_tokens_BL,
    lambda logits_VB, _: most_likely(logits_VB),
    max_decode_tokens=max_decode_tokens,
    eos_id=eos_id,
    pad_id=pad_id,
    start_tokens_B=start_tokens_B,
  )
