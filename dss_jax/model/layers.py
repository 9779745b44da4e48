"""T5's layers with T5X's parameter names and logical axes.

Shapes: B batch rows, Q and K query and key length, D embed, H heads, K head width, F mlp,
V vocabulary. Weights are float32; activations have the config's dtype; norms, attention
logits and softmax are float32 whatever that dtype is.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dss_jax.config import T5Config

# Added to the logits of masked positions; as T5X has it.
MASKED = -1e10

Initializer = Callable[..., jax.Array]


def _weight(
  module: nn.Module, name: str, initializer: Initializer, axes: tuple[str, ...], shape: Any
) -> jax.Array:
  """The module's float32 weight of this name, boxed with its logical axes when initialised."""
  boxed = nn.with_logical_partitioning(initializer, axes)
  weight: Any = module.param(name, boxed, shape, jnp.float32)
  return weight


class Dense(nn.Module):
  """x @ kernel, no bias; the kernel is stored in two dimensions as T5X does."""

  features: int
  axes: tuple[str, str]
  dtype: Any
  initializer: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1], self.features)
    kernel = _weight(self, "kernel", self.initializer, self.axes, shape)
    return jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))


class RMSNorm(nn.Module):
  """x / rms(x) * scale over the last axis, without mean or bias (T5's layer norm)."""

  dtype: Any
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = _weight(self, "scale", nn.initializers.ones, ("embed",), (x.shape[-1],))
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
    return (x * scale).astype(self.dtype)


class Dropout(nn.Module):
  """Zeroes each element with probability `rate` and scales the rest by 1 / (1 - rate).

  The mask compares 16 random bits with rate * 2^16, half the bits that a float32 draw takes;
  with 16 bits the rate is exact to 1e-5.
  """

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    if deterministic or self.rate == 0.0:
      return x
    bits = jax.random.bits(self.make_rng("dropout"), x.shape, jnp.uint16)
    keep = bits >= jnp.uint16(round(self.rate * 2**16))
    return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros((), x.dtype))


class TokenEmbedder(nn.Module):
  """The table of token embeddings, [V, D]; a lookup gathers rows."""

  config: T5Config

  def setup(self):
    assert self.config.vocab_size is not None
    shape = (self.config.vocab_size, self.config.emb_dim)
    normal = nn.initializers.normal(stddev=1.0)
    self.embedding = _weight(self, "embedding", normal, ("vocab", "embed"), shape)

  def __call__(self, tokens_BL: jax.Array) -> jax.Array:
    return jnp.take(self.embedding, tokens_BL, axis=0).astype(self.config.dtype)


def relative_position_bucket(
  relative_position: np.ndarray | jax.Array,
  *,
  bidirectional: bool,
  num_buckets: int = 32,
  max_distance: int = 128,
):
  """The bucket of each key position minus query position (T5, Raffel et al. 2020, section 2.1).

  Half of the buckets are exact distances, the other half grow logarithmically up to
  max_distance. Bidirectional attention spends half of the buckets on keys to the right.
  """
  bucket = jnp.zeros_like(relative_position)
  if bidirectional:
    num_buckets //= 2
    bucket = bucket + (relative_position > 0) * num_buckets
    distance = jnp.abs(relative_position)
  else:
    distance = jnp.maximum(-relative_position, 0)
  max_exact = num_buckets // 2
  growth = jnp.log(distance.astype(jnp.float32) / max_exact + np.finfo(np.float32).eps)
  growth = growth / np.log(max_distance / max_exact) * (num_buckets - max_exact)
  far = jnp.minimum(max_exact + growth.astype(jnp.int32), num_buckets - 1)
  return bucket + jnp.where(distance < max_exact, distance, far)


class RelativePositionBias(nn.Module):
  """A learnt number per head and bucket, added to the attention logits: [1, H, Q, K]."""

  num_heads: int
  bidirectional: bool
  num_buckets: int = 32
  max_distance: int = 128

  @nn.compact
  def __call__(self, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
    uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
    shape = (self.num_heads, self.num_buckets)
    embedding = _weight(self, "rel_embedding", uniform, ("heads", "relpos_buckets"), shape)
    bucket_QK = relative_position_bucket(
      key_positions[None, :] - query_positions[:, None],
      bidirectional=self.bidirectional,
      num_buckets=self.num_buckets,
      max_distance=self.max_distance,
    )
    return jnp.take(embedding, bucket_QK, axis=1)[None]


class Attention(nn.Module):
  """Multi-head attention with an additive bias and no scaling of the logits.

  T5 folds 1/sqrt(head_dim) into the query's initialiser instead of the forward pass.
  """

  config: T5Config

  def setup(self):
    config = self.config
    joined = config.num_heads * config.head_dim
    normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")

    def scaled_normal(*args):
      return normal(*args) / np.sqrt(config.head_dim)

    self.query = Dense(joined, ("embed", "joined_kv"), config.dtype, scaled_normal)
    self.key = Dense(joined, ("embed", "joined_kv"), config.dtype, normal)
    self.value = Dense(joined, ("embed", "joined_kv"), config.dtype, normal)
    self.out = Dense(config.emb_dim, ("joined_kv", "embed"), config.dtype, normal)
    self.dropout = Dropout(config.dropout_rate)

  def keys_and_values(self, x_BLD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values, each [B, L, H, K]."""
    return self._heads(self.key(x_BLD)), self._heads(self.value(x_BLD))

  def __call__(
    self,
    x_BQD: jax.Array,
    key_BLHK: jax.Array,
    value_BLHK: jax.Array,
    bias: jax.Array,
    *,
    deterministic: bool,
  ) -> jax.Array:
    """Each query's mix of values, [B, Q, D]; `bias` broadcasts to [B, H, Q, L]."""
    query_BQHK = self._heads(self.query(x_BQD))
    logits = jnp.einsum("bqhk,blhk->bhql", query_BQHK, key_BLHK, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits + bias, axis=-1).astype(self.config.dtype)
    weights = self.dropout(weights, deterministic)
    mixed_BQHK = jnp.einsum("bhql,blhk->bqhk", weights, value_BLHK)
    return self.out(mixed_BQHK.reshape(*mixed_BQHK.shape[:-2], -1))

  def _heads(self, x: jax.Array) -> jax.Array:
    x = x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)
    return nn.with_logical_constraint(x, ("batch", "length", "heads", "kv"))


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": jax.nn.gelu,  # the tanh approximation, as T5X and Hugging Face's gelu_new
  "relu": jax.nn.relu,
  "linear": lambda x: x,
}


class MlpBlock(nn.Module):
  """The product of the activated projections, dropped out, projected back: [B, L, D]."""

  config: T5Config

  @nn.compact
  def __call__(self, x_BLD: jax.Array, *, deterministic: bool) -> jax.Array:
    config = self.config
    parts = []
    for index, activation in enumerate(config.mlp_activations):
      name = "wi" if len(config.mlp_activations) == 1 else f"wi_{index}"
      part = Dense(config.mlp_dim, ("embed", "mlp"), config.dtype, name=name)(x_BLD)
      parts.append(_ACTIVATIONS[activation](part))
    hidden_BLF = Dropout(config.dropout_rate)(math.prod(parts[1:], start=parts[0]), deterministic)
    hidden_BLF = nn.with_logical_constraint(hidden_BLF, ("batch", "length", "mlp"))
    return Dense(config.emb_dim, ("mlp", "embed"), config.dtype, name="wo")(hidden_BLF)
