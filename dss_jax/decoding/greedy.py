"""Greedy decoding: the most likely next token at each step."""

from typing import Any

import jax
import jax.numpy as jnp

from dss_jax.config.schema import T5Config
from dss_jax.decoding.decoder import decode_step, empty_caches, encode, heads_first
from dss_jax.decoding.weights import DecodingWeights, decoding_weights
from dss_jax.model.layer_stacks import unrolled_config


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
) -> jax.Array:
  """Decodes the most likely next token at each step, int32 [B, max_decode_tokens].

  Decoding starts from the pad token, as T5 was trained, and ends when every row has its end
  token (kept) or after max_decode_tokens; a row is padded after its end. Encoder positions of
  the pad id are padding and are not attended to.

  Args:
    params: the network's parameters, or its DecodingWeights.
  """
  if not isinstance(params, DecodingWeights):
    params = decoding_weights(params, config)
  config = unrolled_config(config)
  source_mask_BL = encoder_input_tokens_BL != pad_id
  crosses = heads_first(
    encode(params, config, encoder_input_tokens_BL, source_mask_BL.astype(jnp.int32))
  )
  rows = encoder_input_tokens_BL.shape[0]

  def unfinished(state):
    step, _, done_B, _, _ = state
    return (step < max_decode_tokens) & ~jnp.all(done_B)

  def advance(state):
    step, tokens_B, done_B, written_BT, caches = state
    positions_B = jnp.full((rows,), step)
    logits_VB, caches = decode_step(
      params, config, tokens_B, step, positions_B, caches, crosses, source_mask_BL
    )
    next_B = jnp.where(done_B, pad_id, most_likely(logits_VB))
    written_BT = jax.lax.dynamic_update_slice_in_dim(written_BT, next_B[:, None], step, axis=1)
    return step + 1, next_B, done_B | (next_B == eos_id), written_BT, caches

  state = (
    jnp.zeros((), jnp.int32),
    jnp.full((rows,), pad_id, jnp.int32),
    # A row of padding only, which completes a batch, has ended from the start.
    ~jnp.any(source_mask_BL, axis=1),
    jnp.full((rows, max_decode_tokens), pad_id, jnp.int32),
    empty_caches(config, rows, max_decode_tokens),
  )
  return jax.lax.while_loop(unfinished, advance, state)[3]
