"""The weights of a network as decoding multiplies them.

A step of decoding multiplies one position of a few rows, so that it takes as long as reading the
weights. Matrices of the decoder are therefore stored as [F, D], and multiply activations whose
last axis is the rows, [D, B]: a CPU reads such a matrix in order, where it would first have to
rearrange x @ kernel's. Matrices that multiply the same activations are one matrix.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dss_jax.config.schema import T5Config, WeightType
from dss_jax.model.layer_stacks import unrolled


@struct.dataclass
class Matrix:
  """A matrix in its stored type.

  Attributes:
    values: [..., D] for inputs D; the encoder's kernels are [D, F].
    scales: of each output, float32, which multiply int8 values; None for other types.
  """

  values: jax.Array
  scales: jax.Array | None = None

  @classmethod
  def of(
    cls, values: jax.Array, weight_type: WeightType, dtype: Any = jnp.float32, *, inputs: int = -1
  ) -> "Matrix":
    """Stores a float32 matrix; int8 rounds to 127 steps of each output's largest weight.

    Args:
      dtype: of the activations, and of the values unless the weight type is narrower.
      inputs: the dimension that a product sums over.
    """
    if weight_type != "int8":
      return cls(values.astype(jnp.bfloat16 if weight_type == "bfloat16" else dtype))
    largest = jnp.max(jnp.abs(values), axis=inputs, keepdims=True)
    scales = jnp.where(largest > 0, largest, 1.0) / 127.0
    return cls(jnp.round(values / scales).astype(jnp.int8), scales.astype(jnp.float32))

  def whole(self, dtype: Any) -> jax.Array:
    """Returns the matrix as numbers of the type."""
    if self.scales is None:
      return self.values.astype(dtype)
    return (self.values.astype(jnp.float32) * self.scales).astype(dtype)

  def __matmul__(self, x_DB: jax.Array) -> jax.Array:
    """Computes matrix @ x, [..., B], in the type of x."""
    product = jnp.tensordot(self.values.astype(x_DB.dtype), x_DB, axes=1)
    return product if self.scales is None else (product * self.scales).astype(x_DB.dtype)

  def of_rows(self, x_BD: jax.Array) -> jax.Array:
    """Computes matrix @ x.T, [..., B]."""
    last = self.values.ndim - 1
    product = jax.lax.dot_general(self.values.astype(x_BD.dtype), x_BD, (((last,), (1,)), ((), ())))
    return product if self.scales is None else (product * self.scales).astype(x_BD.dtype)

  def rows(self, numbers: jax.Array, dtype: Any) -> jax.Array:
    """Returns rows of the matrix, [*numbers.shape, D]."""
    scales = None if self.scales is None else jnp.take(self.scales, numbers, axis=0)
    return Matrix(jnp.take(self.values, numbers, axis=0), scales).whole(dtype)


@struct.dataclass
class DecodingWeights:
  """A network's weights for decoding.

  Attributes:
    encoder: the encoder's parameters, with every kernel as a Matrix.
    crosses: of each layer, the cross-attention's key and value, [2, H * K, D].
    layers: of each layer, its matrices and scales of norms by name.
    norm_D: the scale of the decoder's last norm.
    embedding: [V, D].
    output: [V, D], from hidden states to logits.
  """

  encoder: Any
  crosses: list[Matrix]
  layers: list[dict[str, Any]]
  norm_D: jax.Array
  embedding: Matrix
  output: Matrix


def decoding_weights(
  params: Any, config: T5Config, weight_type: WeightType = "float32"
) -> DecodingWeights:
  """Rearranges a network's parameters, in either layout of its layers."""
  params, config = unrolled(params, config)
  decoder = params["decoder"]

  def matrix(*kernels: Any, shape: tuple[int, ...] = (-1,), dtype: Any = config.dtype) -> Matrix:
    """Stores kernels [D, F] of the same activations as one matrix [kernels, *shape, D]."""
    outputs = [kernel["kernel"].T.reshape(*shape, kernel["kernel"].shape[0]) for kernel in kernels]
    return Matrix.of(jnp.stack(outputs) if len(kernels) > 1 else outputs[0], weight_type, dtype)

  heads = (config.num_heads, config.head_dim)
  layers, crosses = [], []
  for number in range(config.num_decoder_layers):
    layer = decoder[f"layers_{number}"]
    own, cross, mlp = layer["self_attention"], layer["encoder_decoder_attention"], layer["mlp"]
    crosses.append(matrix(cross["key"], cross["value"], shape=heads))
    layers.append(
      {
        "self_norm": layer["pre_self_attention_layer_norm"]["scale"],
        "query_key_value": matrix(own["query"], own["key"], own["value"], shape=heads),
        "self_output": matrix(own["out"]),
        "cross_norm": layer["pre_cross_attention_layer_norm"]["scale"],
        "cross_query": matrix(cross["query"], shape=heads),
        "cross_output": matrix(cross["out"]),
        "mlp_norm": layer["pre_mlp_layer_norm"]["scale"],
        "mlp_input": matrix(*(mlp[name] for name in sorted(mlp) if name.startswith("wi"))),
        "mlp_output": matrix(mlp["wo"]),
        # float32 [H, P].
        "position_bias": (decoder if config.shared_relpos_bias else layer)["relpos_bias"][
          "rel_embedding"
        ],
      }
    )
  table = params["token_embedder"]["embedding"]
  # A lookup gives the same numbers whether the table or the row that it finds is rounded.
  embedding = Matrix.of(table, weight_type)
  if config.logits_via_embedding:
    output = embedding
  else:
    output = matrix(decoder["logits_dense"], dtype=jnp.float32)

  def stored(path: Any, leaf: jax.Array) -> Any:
    return Matrix.of(leaf, weight_type, inputs=0) if path[-1].key == "kernel" else leaf

  encoder = jax.tree_util.tree_map_with_path(stored, params["encoder"])
  return DecodingWeights(
    encoder, crosses, layers, decoder["decoder_norm"]["scale"], embedding, output
  )


def encoder_params(weights: DecodingWeights) -> Any:
  """Returns the parameters that Transformer.encode takes, in float32."""

  def whole(leaf: Any) -> jax.Array:
    return leaf.whole(jnp.float32) if isinstance(leaf, Matrix) else leaf

  encoder = jax.tree.map(whole, weights.encoder, is_leaf=lambda leaf: isinstance(leaf, Matrix))
  embedding = weights.embedding.whole(jnp.float32)
  return {"encoder": encoder, "token_embedder": {"embedding": embedding}}


def stored_bytes(weights: DecodingWeights) -> int:
  """Returns the memory of the weights."""
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
