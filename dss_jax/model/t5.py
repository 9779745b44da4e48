"""The T5 network: encoder, decoder, and the Transformer that joins them.

The parameter tree, its names and its logical axes are T5X's, so that its checkpoints restore
as they are. Segment ids keep packed sequences apart: a position sees its own segment only,
and segment 0 is padding. Relative positions need no reset within a row, since a segment is
contiguous.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dss_jax.config import T5Config
from dss_jax.model.layers import (
  MASKED,
  Attention,
  Dense,
  Dropout,
  MlpBlock,
  RelativePositionBias,
  RMSNorm,
  TokenEmbedder,
)

# Keys and values of one attention, each [B, L, H, K].
KeyValue = tuple[jax.Array, jax.Array]


def same_segment_bias(query_segments_BQ: jax.Array, key_segments_BL: jax.Array) -> jax.Array:
  """0 where query and key share a segment, very negative elsewhere: float32 [B, 1, Q, L]."""
  same = query_segments_BQ[:, None, :, None] == key_segments_BL[:, None, None, :]
  return jnp.where(same, 0.0, MASKED).astype(jnp.float32)


class EncoderLayer(nn.Module):
  config: T5Config

  @nn.compact
  def __call__(self, x_BLD: jax.Array, bias: jax.Array, *, deterministic: bool) -> jax.Array:
    config = self.config
    x_BLD = nn.with_logical_constraint(x_BLD, ("batch", "length", "embed"))
    normed = RMSNorm(config.dtype, name="pre_attention_layer_norm")(x_BLD)
    if not config.shared_relpos_bias:
      positions = jnp.arange(x_BLD.shape[1])
      own_bias = RelativePositionBias(config.num_heads, bidirectional=True, name="relpos_bias")
      bias = bias + own_bias(positions, positions)
    attention = Attention(config, name="attention")
    key, value = attention.keys_and_values(normed)
    mixed = attention(normed, key, value, bias, deterministic=deterministic)
    x_BLD = x_BLD + Dropout(config.dropout_rate)(mixed, deterministic)
    normed = RMSNorm(config.dtype, name="pre_mlp_layer_norm")(x_BLD)
    mlp = MlpBlock(config, name="mlp")(normed, deterministic=deterministic)
    return x_BLD + Dropout(config.dropout_rate)(mlp, deterministic)


class Encoder(nn.Module):
  config: T5Config

  @nn.compact
  def __call__(
    self, embedded_BLD: jax.Array, segment_ids_BL: jax.Array, *, deterministic: bool
  ) -> jax.Array:
    config = self.config
    bias = same_segment_bias(segment_ids_BL, segment_ids_BL)
    if config.shared_relpos_bias:
      positions = jnp.arange(embedded_BLD.shape[1])
      shared = RelativePositionBias(config.num_heads, bidirectional=True, name="relpos_bias")
      bias = shared(positions, positions) + bias
    x_BLD = Dropout(config.dropout_rate)(embedded_BLD, deterministic)
    for index in range(config.num_encoder_layers):
      layer = EncoderLayer(config, name=f"layers_{index}")
      x_BLD = layer(x_BLD, bias, deterministic=deterministic)
    x_BLD = RMSNorm(config.dtype, name="encoder_norm")(x_BLD)
    return Dropout(config.dropout_rate)(x_BLD, deterministic)


class DecoderLayer(nn.Module):
  config: T5Config

  def setup(self):
    config = self.config
    if not config.shared_relpos_bias:
      self.relpos_bias = RelativePositionBias(config.num_heads, bidirectional=False)
    self.pre_self_attention_layer_norm = RMSNorm(config.dtype)
    self.self_attention = Attention(config)
    self.pre_cross_attention_layer_norm = RMSNorm(config.dtype)
    self.encoder_decoder_attention = Attention(config)
    self.pre_mlp_layer_norm = RMSNorm(config.dtype)
    self.mlp = MlpBlock(config)
    self.dropout = Dropout(config.dropout_rate)

  def __call__(
    self,
    y_BMD: jax.Array,
    cross: KeyValue,
    self_bias: jax.Array,
    cross_bias: jax.Array,
    *,
    deterministic: bool,
    cache: KeyValue | None = None,
    step: jax.Array | None = None,
  ) -> tuple[jax.Array, KeyValue]:
    """The layer's output and its self-attention keys and values.

    With a cache [B, T, H, K] and a step t, the one query position's key and value are written
    at t and the query sees the whole cache; without, queries see the keys of their own call.
    """
    y_BMD = nn.with_logical_constraint(y_BMD, ("batch", "length", "embed"))
    normed = self.pre_self_attention_layer_norm(y_BMD)
    key, value = self.self_attention.keys_and_values(normed)
    if cache is not None:
      assert step is not None
      key = jax.lax.dynamic_update_slice_in_dim(cache[0], key, step, axis=1)
      value = jax.lax.dynamic_update_slice_in_dim(cache[1], value, step, axis=1)
    if not self.config.shared_relpos_bias:
      keys = jnp.arange(key.shape[1])
      self_bias = self_bias + self.relpos_bias(keys if step is None else step[None], keys)
    mixed = self.self_attention(normed, key, value, self_bias, deterministic=deterministic)
    y_BMD = y_BMD + self.dropout(mixed, deterministic)
    normed = self.pre_cross_attention_layer_norm(y_BMD)
    mixed = self.encoder_decoder_attention(normed, *cross, cross_bias, deterministic=deterministic)
    y_BMD = y_BMD + self.dropout(mixed, deterministic)
    normed = self.pre_mlp_layer_norm(y_BMD)
    y_BMD = y_BMD + self.dropout(self.mlp(normed, deterministic=deterministic), deterministic)
    return y_BMD, (key, value)


class Decoder(nn.Module):
  config: T5Config

  def setup(self):
    config = self.config
    if config.shared_relpos_bias:
      self.relpos_bias = RelativePositionBias(config.num_heads, bidirectional=False)
    self.layers = [
      DecoderLayer(config, name=f"layers_{index}") for index in range(config.num_decoder_layers)
    ]
    self.decoder_norm = RMSNorm(config.dtype)
    self.dropout = Dropout(config.dropout_rate)
    if not config.logits_via_embedding:
      assert config.vocab_size is not None
      self.logits_dense = Dense(config.vocab_size, ("embed", "vocab"), jnp.float32)

  def __call__(
    self,
    embedded_BMD: jax.Array,
    segment_ids_BM: jax.Array,
    encoded_BLD: jax.Array,
    encoder_segment_ids_BL: jax.Array,
    *,
    deterministic: bool,
  ) -> jax.Array:
    """Hidden states before the logits, [B, M, D]."""
    positions = jnp.arange(embedded_BMD.shape[1])
    causal = jnp.where(positions[None, :] <= positions[:, None], 0.0, MASKED)
    self_bias = causal + same_segment_bias(segment_ids_BM, segment_ids_BM)
    if self.config.shared_relpos_bias:
      self_bias = self.relpos_bias(positions, positions) + self_bias
    cross_bias = same_segment_bias(segment_ids_BM, encoder_segment_ids_BL)
    y_BMD = self.dropout(embedded_BMD, deterministic)
    for layer in self.layers:
      cross = layer.encoder_decoder_attention.keys_and_values(encoded_BLD)
      y_BMD, _ = layer(y_BMD, cross, self_bias, cross_bias, deterministic=deterministic)
    return self.dropout(self.decoder_norm(y_BMD), deterministic)

  def cross_keys_and_values(self, encoded_BLD: jax.Array) -> list[KeyValue]:
    """What each layer's cross-attention looks at, computed once for a whole decoding."""
    return [layer.encoder_decoder_attention.keys_and_values(encoded_BLD) for layer in self.layers]

  def decode_step(
    self,
    embedded_B1D: jax.Array,
    step: jax.Array,
    caches: list[KeyValue],
    crosses: list[KeyValue],
    cross_bias: jax.Array,
  ) -> tuple[jax.Array, list[KeyValue]]:
    """Hidden state of position `step`, [B, 1, D], and the caches with that position added."""
    positions = jnp.arange(caches[0][0].shape[1])
    seen = jnp.where(positions <= step, 0.0, MASKED)[None, None, None, :]
    self_bias = seen
    if self.config.shared_relpos_bias:
      self_bias = self.relpos_bias(step[None], positions) + seen
    y, new_caches = embedded_B1D, []
    for layer, cache, cross in zip(self.layers, caches, crosses, strict=True):
      y, new_cache = layer(
        y, cross, self_bias, cross_bias, deterministic=True, cache=cache, step=step
      )
      new_caches.append(new_cache)
    return self.decoder_norm(y), new_caches


class Transformer(nn.Module):
  """T5: token ids in, logits (or the hidden states before them) out."""

  config: T5Config

  def setup(self):
    self.token_embedder = TokenEmbedder(self.config)
    self.encoder = Encoder(self.config)
    self.decoder = Decoder(self.config)

  def encode(
    self, tokens_BL: jax.Array, segment_ids_BL: jax.Array, *, deterministic: bool = True
  ) -> jax.Array:
    """Encoder outputs, [B, L, D]."""
    return self.encoder(self.token_embedder(tokens_BL), segment_ids_BL, deterministic=deterministic)

  def hidden(
    self,
    encoder_input_tokens_BL: jax.Array,
    encoder_segment_ids_BL: jax.Array,
    decoder_input_tokens_BM: jax.Array,
    decoder_segment_ids_BM: jax.Array,
    *,
    deterministic: bool = True,
  ) -> jax.Array:
    """Decoder states before the logits, [B, M, D], scaled where the logits are tied."""
    encoded_BLD = self.encode(
      encoder_input_tokens_BL, encoder_segment_ids_BL, deterministic=deterministic
    )
    hidden_BMD = self.decoder(
      self.token_embedder(decoder_input_tokens_BM),
      decoder_segment_ids_BM,
      encoded_BLD,
      encoder_segment_ids_BL,
      deterministic=deterministic,
    )
    return self._scaled(hidden_BMD)

  def __call__(
    self,
    encoder_input_tokens_BL: jax.Array,
    encoder_segment_ids_BL: jax.Array,
    decoder_input_tokens_BM: jax.Array,
    decoder_segment_ids_BM: jax.Array,
    *,
    deterministic: bool = True,
  ) -> jax.Array:
    """Logits, float32 [B, M, V]."""
    hidden_BMD = self.hidden(
      encoder_input_tokens_BL,
      encoder_segment_ids_BL,
      decoder_input_tokens_BM,
      decoder_segment_ids_BM,
      deterministic=deterministic,
    )
    return self.logits(hidden_BMD)

  def logits(self, hidden_BMD: jax.Array) -> jax.Array:
    """Logits of (scaled) hidden states, float32 [B, M, V]."""
    if self.config.logits_via_embedding:
      return jnp.dot(hidden_BMD.astype(jnp.float32), self.token_embedder.embedding.T)
    return self.decoder.logits_dense(hidden_BMD)

  def cross_keys_and_values(self, encoded_BLD: jax.Array) -> list[KeyValue]:
    return self.decoder.cross_keys_and_values(encoded_BLD)

  def decode_step(
    self,
    tokens_B1: jax.Array,
    step: jax.Array,
    caches: list[KeyValue],
    crosses: list[KeyValue],
    cross_bias: jax.Array,
  ) -> tuple[jax.Array, list[KeyValue]]:
    """Logits [B, V] of the token after `tokens_B1`, which stands at position `step`."""
    hidden, caches = self.decoder.decode_step(
      self.token_embedder(tokens_B1), step, caches, crosses, cross_bias
    )
    return self.logits(self._scaled(hidden))[:, 0], caches

  def _scaled(self, hidden_BMD: jax.Array) -> jax.Array:
    if self.config.logits_via_embedding:
      return hidden_BMD / jnp.sqrt(self.config.emb_dim).astype(hidden_BMD.dtype)
    return hidden_BMD


def output_kernel(params: Any, config: T5Config) -> jax.Array:
  """The matrix that turns hidden states into logits, float32 [D, V]."""
  if config.logits_via_embedding:
    return params["token_embedder"]["embedding"].T
  return params["decoder"]["logits_dense"]["kernel"]


def init_params(config: T5Config, key: jax.Array) -> Any:
  """A fresh parameter tree, each leaf boxed with its logical axes (flax LogicallyPartitioned)."""
  ids = jnp.ones((1, 2), jnp.int32)
  return Transformer(config).init({"params": key}, ids, ids, ids, ids)["params"]
