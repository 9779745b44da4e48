"""T5's decoder, one position of each row at a time, over a cache of keys and values.

Activations have the rows last, [D, B], as the products of weights.py take them; attention has
them first. A cache is a ring: step n writes all rows' keys at n modulo its length T, and a row
attends to the positions that it has written itself, by their distance from the present one. Only
distances matter to T5's position bias, so rows may be at different positions, and no row's cache
is ever moved or emptied.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dss_jax.config.schema import T5Config
from dss_jax.decoding.weights import DecodingWeights, encoder_params
from dss_jax.model.attention import MASKED, relative_position_bucket
from dss_jax.model.layer_stacks import unrolled_config
from dss_jax.model.layers import ACTIVATIONS
from dss_jax.model.t5 import Transformer

# Keys and values of one attention, each [B, H, T, K].
KeyValue = tuple[jax.Array, jax.Array]
_EPSILON = 1e-6


def encode(
  weights: DecodingWeights, config: T5Config, tokens_BL: jax.Array, segment_ids_BL: jax.Array
) -> list[jax.Array]:
  """Computes each layer's cross-attention keys and values of (packed) inputs, [B, L, 2, H, K]."""
  encoded_BLD: Any = Transformer(unrolled_config(config)).apply(
    {"params": encoder_params(weights)}, tokens_BL, segment_ids_BL, method=Transformer.encode
  )
  return [
    jnp.einsum("bld,chkd->blchk", encoded_BLD, matrix.whole(encoded_BLD.dtype))
    for matrix in weights.crosses
  ]


def heads_first(crosses: list[jax.Array]) -> list[KeyValue]:
  """Converts the encoder's keys and values to the layout of a cache."""

  def part(x_BL2HK: jax.Array, number: int) -> jax.Array:
    return cache_constraint(x_BL2HK[:, :, number].swapaxes(1, 2))

  return [(part(x, 0), part(x, 1)) for x in crosses]


def cache_constraint(x_BHTK: jax.Array) -> jax.Array:
  return nn.with_logical_constraint(x_BHTK, ("batch", "heads", None, "kv"))


def empty_caches(config: T5Config, rows: int, length: int) -> list[KeyValue]:
  """Returns each layer's cache with nothing written."""
  shape = (rows, config.num_heads, length, config.head_dim)
  # An array each, since a program that updates them in place takes no array twice.
  return [
    (
      cache_constraint(jnp.zeros(shape, config.dtype)),
      cache_constraint(jnp.zeros(shape, config.dtype)),
    )
    for _ in range(config.num_decoder_layers)
  ]


def decode_step(
  weights: DecodingWeights,
  config: T5Config,
  tokens_B: jax.Array,
  step: jax.Array,
  positions_B: jax.Array,
  caches: list[KeyValue],
  crosses: list[KeyValue],
  source_mask_BL: jax.Array,
) -> tuple[jax.Array, list[KeyValue]]:
  """Computes the logits after the tokens, float32 [V, B], and the caches with their keys.

  Args:
    tokens_B: each row's last token; its start token at position 0.
    step: the number of steps that the caches have seen.
    positions_B: each row's position, less than the caches' length.
    source_mask_BL: which encoder positions a row attends to.
  """
  length = caches[0][0].shape[2]
  distances_T = (step - jnp.arange(length)) % length
  seen_BT = distances_T <= positions_B[:, None]
  self_mask = jnp.where(seen_BT, 0.0, MASKED)[:, None]
  cross_mask = jnp.where(source_mask_BL, 0.0, MASKED)[:, None]
  written = step % length
  x_DB = weights.embedding.rows(tokens_B, config.dtype).T
  new_caches = []
  for layer, cache, cross in zip(weights.layers, caches, crosses, strict=True):
    normed = _norm(x_DB, layer["self_norm"], config)
    query, *new = _rows_first(layer["query_key_value"] @ normed)
    key, value = (
      jax.lax.dynamic_update_slice_in_dim(old, one[:, :, None], written, axis=2)
      for old, one in zip(cache, new, strict=True)
    )
    new_caches.append((key, value))
    table_HP = layer["position_bias"]
    bucket_T = relative_position_bucket(
      -distances_T, bidirectional=False, num_buckets=table_HP.shape[1]
    )
    mixed_BD = _attend(query, key, value, self_mask + jnp.take(table_HP, bucket_T, axis=1))
    x_DB = x_DB + layer["self_output"].of_rows(mixed_BD)

    normed = _norm(x_DB, layer["cross_norm"], config)
    (query,) = _rows_first((layer["cross_query"] @ normed)[None])
    x_DB = x_DB + layer["cross_output"].of_rows(_attend(query, *cross, cross_mask))

    normed = _norm(x_DB, layer["mlp_norm"], config)
    parts = layer["mlp_input"] @ normed
    if len(config.mlp_activations) == 1:
      parts = parts[None]
    parts = [
      ACTIVATIONS[name](part) for name, part in zip(config.mlp_activations, parts, strict=True)
    ]
    x_DB = x_DB + layer["mlp_output"] @ math.prod(parts[1:], start=parts[0])
  x_DB = _norm(x_DB, weights.norm_D, config)
  if config.logits_via_embedding and config.scale_tied_logits:
    x_DB = x_DB / jnp.sqrt(config.emb_dim).astype(x_DB.dtype)
  return jax.lax.optimization_barrier(weights.output @ x_DB.astype(jnp.float32)), new_caches


def decode_batch(
  weights: DecodingWeights,
  config: T5Config,
  encoder_input_tokens_BL: jax.Array,
  next_tokens: Callable[[jax.Array, jax.Array], jax.Array],
  *,
  max_decode_tokens: int,
  eos_id: int,
  pad_id: int,
  start_tokens_B: jax.Array | None = None,
) -> jax.Array:
  """Decodes a batch whose rows all start at once, int32 [B, max_decode_tokens].

  Decoding starts from the pad token, as T5 was trained, and ends when every row has its end
  token (kept) or after max_decode_tokens; a row is padded after its end. Encoder positions of
  the pad id are padding and are not attended to; a row of padding only decodes to padding.

  Args:
    next_tokens: chooses each row's next token, int32 [B], from (logits float32 [V, B], position
      int32 scalar, counted from 0).
    start_tokens_B: tokens to start from in place of the pad token.
  """
  config = unrolled_config(config)
  source_mask_BL = encoder_input_tokens_BL != pad_id
  crosses = heads_first(
    encode(weights, config, encoder_input_tokens_BL, source_mask_BL.astype(jnp.int32))
  )
  rows = encoder_input_tokens_BL.shape[0]

  def unfinished(state):
    step, _, done_B, _, _ = state
    return (step < max_decode_tokens) & ~jnp.all(done_B)

  def advance(state):
    step, tokens_B, done_B, written_BT, caches = state
    positions_B = jnp.full((rows,), step)
    logits_VB, caches = decode_step(
      weights, config, tokens_B, step, positions_B, caches, crosses, source_mask_BL
    )
    next_B = jnp.where(done_B, pad_id, next_tokens(logits_VB, step))
    written_BT = jax.lax.dynamic_update_slice_in_dim(written_BT, next_B[:, None], step, axis=1)
    return step + 1, next_B, done_B | (next_B == eos_id), written_BT, caches

  state = (
    jnp.zeros((), jnp.int32),
    jnp.full((rows,), pad_id, jnp.int32) if start_tokens_B is None else start_tokens_B,
    # A row of padding only, which completes a batch, has ended from the start.
    ~jnp.any(source_mask_BL, axis=1),
    jnp.full((rows, max_decode_tokens), pad_id, jnp.int32),
    empty_caches(config, rows, max_decode_tokens),
  )
  return jax.lax.while_loop(unfinished, advance, state)[3]


def _norm(x_DB: jax.Array, scale_D: jax.Array, config: T5Config) -> jax.Array:
  x_DB = x_DB.astype(jnp.float32)
  mean_B = jnp.mean(jnp.square(x_DB), axis=0)
  return (x_DB * jax.lax.rsqrt(mean_B + _EPSILON) * scale_D[:, None]).astype(config.dtype)


def _rows_first(product_CHKB: jax.Array) -> list[jax.Array]:
  """Returns the parts of a product, each [B, H, K].

  Without the barrier the compiler would compute the product transposed, which takes a CPU twice
  as long.
  """
  return list(jnp.moveaxis(jax.lax.optimization_barrier(product_CHKB), -1, 1))


def _attend(
  query_BHK: jax.Array, key_BHTK: jax.Array, value_BHTK: jax.Array, bias: jax.Array
) -> jax.Array:
  """Computes the weighted values of all heads, [B, H * K]; logits and softmax are float32."""
  logits_BHT = jnp.einsum("bhk,bhtk->bht", query_BHK, key_BHTK, preferred_element_type=jnp.float32)
  weights_BHT = jax.nn.softmax(logits_BHT + bias, axis=-1).astype(query_BHK.dtype)
  mixed_BHK = jnp.einsum("bht,bhtk->bhk", weights_BHT, value_BHTK)
  return mixed_BHK.reshape(mixed_BHK.shape[0], -1)
