"""Greedy decoding with a key-value cache."""

from typing import Any

import jax
import jax.numpy as jnp

from dss_jax.config.schema import T5Config
from dss_jax.model.attention import same_segment_bias
from dss_jax.model.layer_stacks import unrolled
from dss_jax.model.t5 import Transformer

# In every vocabulary, as in SeqIO and T5X.
PAD_ID = 0


def greedy(
  params: Any,
  config: T5Config,
  encoder_input_tokens_BL: jax.Array,
  *,
  max_decode_tokens: int,
  eos_id: int,
) -> jax.Array:
  """Decodes the most likely next token at each step, int32 [B, max_decode_tokens].

  Decoding starts from the pad token, as T5 was trained, and ends when every row has its end
  token, eos_id (kept), or after max_decode_tokens; a row is padded after its end. Encoder
  positions of id 0 are padding and are not attended to.
  """
  # Unrolled, so that each layer's cache is updated in place.
  params, config = unrolled(params, config)
  model = Transformer(config)
  variables = {"params": params}
  segments_BL = (encoder_input_tokens_BL != PAD_ID).astype(jnp.int32)
  encoded_BLD = model.apply(
    variables, encoder_input_tokens_BL, segments_BL, method=Transformer.encode
  )
  crosses = model.apply(variables, encoded_BLD, method=Transformer.cross_keys_and_values)
  rows = encoder_input_tokens_BL.shape[0]
  cross_bias = same_segment_bias(jnp.ones((rows, 1), jnp.int32), segments_BL)
  shape = (rows, max_decode_tokens, config.num_heads, config.head_dim)
  empty = jnp.zeros(shape, config.dtype)

  def unfinished(state):
    step, _, done_B, _, _ = state
    return (step < max_decode_tokens) & ~jnp.all(done_B)

  def advance(state):
    step, tokens_B1, done_B, written_BT, caches = state
    logits_BV, caches = model.apply(
      variables, tokens_B1, step, caches, crosses, cross_bias, method=Transformer.decode_step
    )
    next_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    next_B = jnp.where(done_B, PAD_ID, next_B)
    written_BT = jax.lax.dynamic_update_slice_in_dim(written_BT, next_B[:, None], step, axis=1)
    return step + 1, next_B[:, None], done_B | (next_B == eos_id), written_BT, caches

  state = (
    jnp.zeros((), jnp.int32),
    jnp.full((rows, 1), PAD_ID, jnp.int32),
    # A row of padding only, which completes a batch, has ended from the start.
    jnp.all(encoder_input_tokens_BL == PAD_ID, axis=1),
    jnp.full((rows, max_decode_tokens), PAD_ID, jnp.int32),
    [(empty, empty) for _ in range(config.num_decoder_layers)],
  )
  return jax.lax.while_loop(unfinished, advance, state)[3]
