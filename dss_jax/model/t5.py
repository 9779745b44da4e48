"""The T5 network: encoder, decoder, and the Transformer of both.

The parameter tree, its names and its logical axes are T5X's, so that its checkpoints restore
unchanged. Segment ids separate packed sequences: a position attends to its own segment only, and
segment 0 is padding. Relative positions need no reset within a row, since segments are contiguous.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from dss_jax.config.schema import T5Config
from dss_jax.model.attention import (
  Attention,
  Bias,
  RelativePositionBias,
)
from dss_jax.model.dropout import Dropout
from dss_jax.model.layer_stacks import LAYERS, stacked_params, unrolled_config
from dss_jax.model.layers import Dense, MlpBlock, RMSNorm, TokenEmbedder

_REMAT_POLICIES = {
  "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


# The outputs of some layers of a stack by the layer's number, from 1; 0 is the first one's input.
States = dict[int, jax.Array]


@struct.dataclass
class Outputs:
  """What a network computes before the logits.

  Attributes:
    hidden_BMD: the decoder states before the logits, scaled as the config says.
    encoder: the chosen states of the encoder, each [B, L, D].
    decoder: those of the decoder, each [B, M, D].
  """

  hidden_BMD: jax.Array
  encoder: States
  decoder: States


def _through_layers(
  layers: Any,
  x: jax.Array,
  *shared: Any,
  count: int,
  config: T5Config,
  deterministic: bool,
  keep: Sequence[int],
) -> tuple[jax.Array, States]:
  """Applies all layers of a stack to the activations; returns the last output and the kept ones.

  Args:
    layers: a list of layers, or one module for all `count` layers if they are scanned.
    shared: further inputs of each layer.
    keep: the numbers of the states to return.
  """
  kept = {0: x} if 0 in keep else {}

  def through(layer: Any, x: jax.Array, *shared: Any) -> jax.Array:
    return layer(x, *shared, deterministic=deterministic)

  if config.remat != "none":
    # Within a loop the compiler cannot merge the two passes, so CSE need not be prevented.
    policy = _REMAT_POLICIES[config.remat]
    through = nn.remat(through, policy=policy, prevent_cse=not config.scan_layers)
  if not config.scan_layers:
    for number, layer in enumerate(layers, start=1):
      x = through(layer, x, *shared)
      if number in keep:
        kept[number] = x
    return x, kept

  def scanned(layer: Any, x: jax.Array, _: None) -> tuple[jax.Array, Any]:
    x = through(layer, x, *shared)
    return x, x if any(keep) else None

  scan = nn.scan(
    scanned,
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    length=count,
    metadata_params={nn.PARTITION_NAME: LAYERS},
  )
  x, outputs = scan(layers, x, None)
  return x, kept | {number: outputs[number - 1] for number in keep if number}


class EncoderLayer(nn.Module):
  config: T5Config

  @nn.compact
  def __call__(self, x_BLD: jax.Array, bias: jax.Array | Bias, *, deterministic: bool) -> jax.Array:
    config = self.config
    x_BLD = nn.with_logical_constraint(x_BLD, ("batch", "length", "embed"))
    normed = RMSNorm(config.dtype, name="pre_attention_layer_norm")(x_BLD)
    if not config.shared_relpos_bias:
      assert isinstance(bias, Bias)
      bias = bias.with_table(RelativePositionBias(config.num_heads, name="relpos_bias")())
    attention = Attention(config, name="attention")
    key, value = attention.keys_and_values(normed)
    mixed = attention(normed, key, value, bias, deterministic=deterministic)
    x_BLD = x_BLD + Dropout(config.dropout_rate)(mixed, deterministic)
    normed = RMSNorm(config.dtype, name="pre_mlp_layer_norm")(x_BLD)
    mlp = MlpBlock(config, name="mlp")(normed, deterministic=deterministic)
    return x_BLD + Dropout(config.dropout_rate)(mlp, deterministic)


class Encoder(nn.Module):
  config: T5Config

  def setup(self):
    config = self.config
    if config.shared_relpos_bias:
      self.relpos_bias = RelativePositionBias(config.num_heads)
    if config.scan_layers:
      self.layers: Any = EncoderLayer(config)
    else:
      self.layers = [EncoderLayer(config) for _ in range(config.num_encoder_layers)]
    self.encoder_norm = RMSNorm(config.dtype)
    self.dropout = Dropout(config.dropout_rate)

  def __call__(
    self,
    embedded_BLD: jax.Array,
    segment_ids_BL: jax.Array,
    *,
    deterministic: bool,
    keep: Sequence[int] = (),
  ) -> tuple[jax.Array, States]:
    """Computes the encoder outputs, [B, L, D], and the states of the layers to keep."""
    config = self.config
    masks = Bias(segment_ids_BL, segment_ids_BL)
    bias: jax.Array | Bias = masks
    if config.shared_relpos_bias:
      bias = masks.with_table(self.relpos_bias()).whole_if_small(config.num_heads)
    x_BLD = self.dropout(embedded_BLD, deterministic)
    x_BLD, kept = _through_layers(
      self.layers,
      x_BLD,
      bias,
      count=config.num_encoder_layers,
      config=config,
      deterministic=deterministic,
      keep=keep,
    )
    return self.dropout(self.encoder_norm(x_BLD), deterministic), kept


class DecoderLayer(nn.Module):
  config: T5Config

  def setup(self):
    config = self.config
    if not config.shared_relpos_bias:
      self.relpos_bias = RelativePositionBias(config.num_heads)
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
    encoded_BLD: jax.Array,
    self_bias: jax.Array | Bias,
    cross_bias: jax.Array | Bias,
    *,
    deterministic: bool,
  ) -> jax.Array:
    """Computes the layer's output of all positions, [B, M, D]."""
    y_BMD = nn.with_logical_constraint(y_BMD, ("batch", "length", "embed"))
    normed = self.pre_self_attention_layer_norm(y_BMD)
    keys = self.self_attention.keys_and_values(normed)
    if not self.config.shared_relpos_bias:
      assert isinstance(self_bias, Bias)
      self_bias = self_bias.with_table(self.relpos_bias())
    cross = self.encoder_decoder_attention.keys_and_values(encoded_BLD)
    mixed = self.self_attention(normed, *keys, self_bias, deterministic=deterministic)
    y_BMD = y_BMD + self.dropout(mixed, deterministic)
    normed = self.pre_cross_attention_layer_norm(y_BMD)
    mixed = self.encoder_decoder_attention(normed, *cross, cross_bias, deterministic=deterministic)
    y_BMD = y_BMD + self.dropout(mixed, deterministic)
    normed = self.pre_mlp_layer_norm(y_BMD)
    return y_BMD + self.dropout(self.mlp(normed, deterministic=deterministic), deterministic)


class Decoder(nn.Module):
  config: T5Config

  def setup(self):
    config = self.config
    if config.shared_relpos_bias:
      self.relpos_bias = RelativePositionBias(config.num_heads)
    if config.scan_layers:
      self.layers: Any = DecoderLayer(config)
    else:
      self.layers = [DecoderLayer(config) for _ in range(config.num_decoder_layers)]
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
    cross_segment_ids_BM: jax.Array | None = None,
    *,
    deterministic: bool,
    keep: Sequence[int] = (),
  ) -> tuple[jax.Array, States]:
    """Computes the states before the logits, [B, M, D], and those of the layers to keep.

    Args:
      cross_segment_ids_BM: the encoder segment that each position reads; None for its own.
    """
    config = self.config
    masks = Bias(segment_ids_BM, segment_ids_BM, causal=True)
    self_bias: jax.Array | Bias = masks
    if config.shared_relpos_bias:
      self_bias = masks.with_table(self.relpos_bias()).whole_if_small(config.num_heads)
    if cross_segment_ids_BM is None:
      cross_segment_ids_BM = segment_ids_BM
    cross_bias = Bias(cross_segment_ids_BM, encoder_segment_ids_BL).whole_if_small(config.num_heads)
    y_BMD, kept = _through_layers(
      self.layers,
      self.dropout(embedded_BMD, deterministic),
      encoded_BLD,
      self_bias,
      cross_bias,
      count=config.num_decoder_layers,
      config=config,
      deterministic=deterministic,
      keep=keep,
    )
    return self.dropout(self.decoder_norm(y_BMD), deterministic), kept


class Transformer(nn.Module):
  """Maps token ids to logits, or to the hidden states before them."""

  config: T5Config

  def setup(self):
    self.token_embedder = TokenEmbedder(self.config)
    self.encoder = Encoder(self.config)
    self.decoder = Decoder(self.config)

  def encode(
    self, tokens_BL: jax.Array, segment_ids_BL: jax.Array, *, deterministic: bool = True
  ) -> jax.Array:
    """Computes the encoder outputs, [B, L, D]."""
    embedded_BLD = self.token_embedder(tokens_BL)
    return self.encoder(embedded_BLD, segment_ids_BL, deterministic=deterministic)[0]

  def hidden(
    self,
    encoder_input_tokens_BL: jax.Array,
    encoder_segment_ids_BL: jax.Array,
    decoder_input_tokens_BM: jax.Array,
    decoder_segment_ids_BM: jax.Array,
    cross_segment_ids_BM: jax.Array | None = None,
    *,
    deterministic: bool = True,
  ) -> jax.Array:
    """Computes the decoder states before the logits, [B, M, D], scaled as the config says."""
    return self.outputs(
      encoder_input_tokens_BL,
      encoder_segment_ids_BL,
      decoder_input_tokens_BM,
      decoder_segment_ids_BM,
      cross_segment_ids_BM,
      deterministic=deterministic,
    ).hidden_BMD

  def outputs(
    self,
    encoder_input_tokens_BL: jax.Array,
    encoder_segment_ids_BL: jax.Array,
    decoder_input_tokens_BM: jax.Array,
    decoder_segment_ids_BM: jax.Array,
    cross_segment_ids_BM: jax.Array | None = None,
    *,
    deterministic: bool = True,
    keep_encoder: Sequence[int] = (),
    keep_decoder: Sequence[int] = (),
  ) -> Outputs:
    """Computes the decoder states before the logits, and the states of the layers to keep."""
    encoded_BLD, encoder = self.encoder(
      self.token_embedder(encoder_input_tokens_BL),
      encoder_segment_ids_BL,
      deterministic=deterministic,
      keep=keep_encoder,
    )
    hidden_BMD, decoder = self.decoder(
      self.token_embedder(decoder_input_tokens_BM),
      decoder_segment_ids_BM,
      encoded_BLD,
      encoder_segment_ids_BL,
      cross_segment_ids_BM,
      deterministic=deterministic,
      keep=keep_decoder,
    )
    return Outputs(scaled_hidden(hidden_BMD, self.config), encoder, decoder)

  def __call__(
    self,
    encoder_input_tokens_BL: jax.Array,
    encoder_segment_ids_BL: jax.Array,
    decoder_input_tokens_BM: jax.Array,
    decoder_segment_ids_BM: jax.Array,
    cross_segment_ids_BM: jax.Array | None = None,
    *,
    deterministic: bool = True,
  ) -> jax.Array:
    """Computes the logits, float32 [B, M, V]."""
    hidden_BMD = self.hidden(
      encoder_input_tokens_BL,
      encoder_segment_ids_BL,
      decoder_input_tokens_BM,
      decoder_segment_ids_BM,
      cross_segment_ids_BM,
      deterministic=deterministic,
    )
    return self.logits(hidden_BMD)

  def logits(self, hidden_BMD: jax.Array) -> jax.Array:
    """Computes the logits of (scaled) hidden states, float32 [B, M, V]."""
    if self.config.logits_via_embedding:
      return jnp.dot(hidden_BMD.astype(jnp.float32), self.token_embedder.embedding.T)
    return self.decoder.logits_dense(hidden_BMD)


def scaled_hidden(hidden_BMD: jax.Array, config: T5Config) -> jax.Array:
  """Returns normed decoder states as the logits are computed from them."""
  if config.logits_via_embedding and config.scale_tied_logits:
    return hidden_BMD / jnp.sqrt(config.emb_dim).astype(hidden_BMD.dtype)
  return hidden_BMD


def output_kernel(params: Any, config: T5Config) -> jax.Array:
  """Returns the matrix from hidden states to logits, float32 [D, V]."""
  if config.logits_via_embedding:
    return params["token_embedder"]["embedding"].T
  return params["decoder"]["logits_dense"]["kernel"]


def init_params(config: T5Config, key: jax.Array) -> Any:
  """Initialises a parameter tree, each leaf boxed with its logical axes (LogicallyPartitioned).

  A key gives the same weights in either layout of the layers.
  """
  ids = jnp.ones((1, 2), jnp.int32)
  network = Transformer(unrolled_config(config))
  params = network.init({"params": key}, ids, ids, ids, ids)["params"]
  return stacked_params(params) if config.scan_layers else params
