"""Products of the states that a network keeps (t5.Outputs), made with its weights."""

from typing import Any

import jax

from dss_jax.config.schema import T5Config
from dss_jax.model.layer_stacks import LAYERS
from dss_jax.model.layers import RMSNorm, product
from dss_jax.model.t5 import scaled_hidden


def normed_output(params: Any, config: T5Config, stack: str, state_BLD: jax.Array) -> jax.Array:
  """Applies the final norm of a stack, "encoder" or "decoder", to the output of any layer."""
  return _normed(params[stack][f"{stack}_norm"], config, state_BLD)


def decoder_hidden(params: Any, config: T5Config, state_BMD: jax.Array) -> jax.Array:
  """Returns the output of any decoder layer as the logits are computed from it, without dropout."""
  return scaled_hidden(normed_output(params, config, "decoder", state_BMD), config)


def self_attention_products(
  params: Any, config: T5Config, stack: str, layer: int, input_BLD: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Computes the queries, keys and values of a layer's self-attention, each [B, L, H K].

  Args:
    layer: its number, from 1.
    input_BLD: the layer's input, which is the state of number layer - 1.
  """
  of_layer = _layer_params(params[stack], config, layer)
  norm, attention = {
    "encoder": ("pre_attention_layer_norm", "attention"),
    "decoder": ("pre_self_attention_layer_norm", "self_attention"),
  }[stack]
  normed = _normed(of_layer[norm], config, input_BLD)
  query, key, value = (
    product(normed, of_layer[attention][name]["kernel"].astype(normed.dtype))
    for name in ("query", "key", "value")
  )
  return query, key, value


def _layer_params(params: Any, config: T5Config, layer: int) -> Any:
  """Returns the weights of one layer of a stack, in either layout."""
  if config.scan_layers:
    return jax.tree.map(lambda leaf: leaf[layer - 1], params[LAYERS])
  return params[f"{LAYERS}_{layer - 1}"]


def _normed(params: Any, config: T5Config, state: jax.Array) -> jax.Array:
  normed: Any = RMSNorm(config.dtype).apply({"params": params}, state)
  return normed
