"""T5's attention: relative position bias, masks, and attention at once or by blocks of queries.

If the logits of all queries would be large, blocks of queries are processed in a loop, forwards
and backwards, and the backward pass recomputes a block's logits: no array of [heads, queries,
keys] ever exists. Bias and mask of a block are computed from positions and segments. A block
has all its keys at once, so its softmax is complete, and both ways are equal to rounding.

Shapes: B batch rows, Q and L query and key length, D embed, H heads, K head width, P buckets
of relative positions.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from dss_jax.config.schema import T5Config
from dss_jax.model.dropout import dropped
from dss_jax.model.layers import Dense, weight

# Added to the logits of masked positions; as T5X has it.
MASKED = -1e10
# The limit of float32 logits in memory on one device; a block has at least eight queries.
LOGITS_BYTES = 64 * 2**20

# Keys and values of one attention, each [B, L, H, K].
KeyValue = tuple[jax.Array, jax.Array]


def relative_position_bucket(
  relative_position: np.ndarray | jax.Array,
  *,
  bidirectional: bool,
  num_buckets: int = 32,
  max_distance: int = 128,
):
  """Returns the bucket of each key minus query position (Raffel et al. 2020, section 2.1).

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


def relative_bias(
  table_HP: jax.Array, first_query: jax.Array | int, queries: int, keys: int, *, bidirectional: bool
) -> jax.Array:
  """Returns the bias of queries from `first_query` on and keys from 0 on: [1, H, Q, L].

  It depends on key minus query alone, so one number per distance is looked up, and each query
  takes a window of them: row q starts q positions further left than row 0.
  """
  distances = jnp.arange(queries + keys) - (queries - 1) - first_query
  bucket = relative_position_bucket(
    distances, bidirectional=bidirectional, num_buckets=table_HP.shape[1]
  )
  band = jnp.take(table_HP, bucket, axis=1)
  # Concatenated copies of the band, reshaped into rows that are one shorter than the band.
  copies = jnp.broadcast_to(band[:, None], (band.shape[0], queries, queries + keys))
  rows = copies.reshape(band.shape[0], -1)[:, queries - 1 :][:, : queries * (queries + keys - 1)]
  bias = rows.reshape(band.shape[0], queries, -1)[None, :, :, :keys]
  return nn.with_logical_constraint(bias, (None, "heads", None, None))


def same_segment_bias(query_segments_BQ: jax.Array, key_segments_BL: jax.Array) -> jax.Array:
  """Returns 0 where query and key share a segment, MASKED elsewhere: float32 [B, 1, Q, L]."""
  same = query_segments_BQ[:, None, :, None] == key_segments_BL[:, None, None, :]
  return jnp.where(same, 0.0, MASKED).astype(jnp.float32)


@struct.dataclass
class Bias:
  """The inputs from which the bias of the logits is computed.

  Attributes:
    table_HP: the relative position bias of each head and bucket, or [B, H, P], a copy per row;
      None for no such bias.
    causal: whether later positions are masked; the buckets are the decoder's then.
  """

  query_segments_BQ: jax.Array
  key_segments_BL: jax.Array
  table_HP: jax.Array | None = None
  causal: bool = struct.field(pytree_node=False, default=False)

  def with_table(self, table_HP: jax.Array) -> "Bias":
    return dataclasses.replace(self, table_HP=table_HP)

  def of_queries(self, first: jax.Array | int, segments_Bq: jax.Array) -> jax.Array:
    """Computes the bias of the queries from `first` on, float32, broadcasting to [B, H, q, L]."""
    queries, keys = segments_Bq.shape[1], self.key_segments_BL.shape[1]
    bias = same_segment_bias(segments_Bq, self.key_segments_BL)
    if self.causal:
      seen = jnp.arange(keys)[None, :] <= first + jnp.arange(queries)[:, None]
      bias = bias + jnp.where(seen, 0.0, MASKED)
    if self.table_HP is None:
      return bias

    def of_table(table_HP: jax.Array) -> jax.Array:
      return relative_bias(table_HP, first, queries, keys, bidirectional=not self.causal)

    if self.table_HP.ndim == 2:
      return of_table(self.table_HP) + bias
    return jax.vmap(of_table)(self.table_HP)[:, 0] + bias

  def with_table_of_rows(self) -> "Bias":
    """Returns a Bias with a copy of the table for each row.

    Each device then sums the gradient of its own rows' copies, and devices are summed once. The
    gradient of a single table would be, in each block, as large as the logits.
    """
    if self.table_HP is None:
      return self
    rows = self.query_segments_BQ.shape[0]
    table_BHP = jnp.broadcast_to(self.table_HP, (rows, *self.table_HP.shape))
    return self.with_table(nn.with_logical_constraint(table_BHP, ("batch", "heads", None)))

  def whole(self) -> jax.Array:
    return self.of_queries(0, self.query_segments_BQ)

  def whole_if_small(self, heads: int) -> "jax.Array | Bias":
    """Computes the bias of all queries, once for all layers, unless blocks are used."""
    return self if query_block(self, heads) else self.whole()


def query_block(bias: Bias, heads: int) -> int | None:
  """Returns the number of queries in a block; None for all of them."""
  rows, queries = bias.query_segments_BQ.shape
  mesh = jax.sharding.get_abstract_mesh()
  shards = 1 if mesh.empty else mesh.size
  bytes_a_query = 4 * rows * heads * bias.key_segments_BL.shape[1] / shards
  most = int(LOGITS_BYTES / bytes_a_query)
  if most >= queries:
    return None
  blocks = math.ceil(queries / max(most // 8 * 8, 8))
  # The last block is padded; with blocks of about equal length, by less than eight per block.
  return math.ceil(queries / blocks / 8) * 8


class RelativePositionBias(nn.Module):
  """A learned number per head and bucket, added to the attention logits."""

  num_heads: int
  num_buckets: int = 32

  def setup(self):
    uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
    shape = (self.num_heads, self.num_buckets)
    self.rel_embedding = weight(self, "rel_embedding", uniform, ("heads", "relpos_buckets"), shape)

  def __call__(self) -> jax.Array:
    """Returns the table, float32 [H, P]."""
    return self.rel_embedding


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

  def keys_and_values(self, x_BLD: jax.Array) -> KeyValue:
    """Computes keys and values, each [B, L, H, K]."""
    return self._heads(self.key(x_BLD)), self._heads(self.value(x_BLD))

  def __call__(
    self,
    x_BQD: jax.Array,
    key_BLHK: jax.Array,
    value_BLHK: jax.Array,
    bias: jax.Array | Bias,
    *,
    deterministic: bool,
  ) -> jax.Array:
    """Computes the attention output of each query, [B, Q, D].

    Args:
      bias: of all queries, broadcasting to [B, H, Q, L]; or a Bias, with which queries are
        processed in blocks if their logits would be large.
    """
    config = self.config
    query_BQHK = self._heads(self.query(x_BQD))
    rate = 0.0 if deterministic else config.dropout_rate
    key = self.make_rng("dropout") if rate else None
    if isinstance(bias, Bias):
      bias = bias.whole_if_small(config.num_heads)
    mix = _mixed_by_blocks if isinstance(bias, Bias) else _mixed
    mixed_BQHK = mix(query_BQHK, key_BLHK, value_BLHK, bias, rate, key)
    return self.out(mixed_BQHK.reshape(*mixed_BQHK.shape[:-2], -1))

  def _heads(self, x: jax.Array) -> jax.Array:
    x = x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)
    return nn.with_logical_constraint(x, ("batch", "length", "heads", "kv"))


def _mixed(query_BQHK, key_BLHK, value_BLHK, bias, dropout_rate, dropout_key) -> jax.Array:
  """Computes the weighted values, [B, Q, H, K]; logits and softmax are float32."""
  # Heads before positions, as in the logits: a CPU multiplies these without strided copies.
  query_BHQK, key_BHLK, value_BHLK = (x.swapaxes(1, 2) for x in (query_BQHK, key_BLHK, value_BLHK))
  logits = jnp.einsum("bhqk,bhlk->bhql", query_BHQK, key_BHLK, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(logits + bias, axis=-1).astype(query_BQHK.dtype)
  if dropout_rate:
    weights = dropped(weights, dropout_rate, dropout_key)
  return jnp.einsum("bhql,bhlk->bhqk", weights, value_BHLK).swapaxes(1, 2)


def _mixed_by_blocks(
  query_BQHK, key_BLHK, value_BLHK, bias, dropout_rate, dropout_key
) -> jax.Array:
  """Computes the same as _mixed, a block of queries at a time.

  A block's dropout mask depends on the key and the block's number, so that the backward pass
  computes the same mask. The gradients of keys, values and table are summed in float32.
  """
  rows, queries, heads = query_BQHK.shape[:3]
  dtype = query_BQHK.dtype
  block = query_block(bias, heads) or queries
  blocks = math.ceil(queries / block)

  def widened(x: jax.Array) -> jax.Array:
    # Gathered before the loop, in case each device has a part of the keys.
    return nn.with_logical_constraint(x, ("batch", None, "heads", "kv")).astype(jnp.float32)

  def split(x: jax.Array) -> jax.Array:
    x = jnp.pad(x, [(0, 0), (0, blocks * block - queries)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(rows, blocks, block, *x.shape[2:]), 1, 0)

  @jax.checkpoint
  def of_block(number, query_BqHK, segments_Bq, keys_and_values, bias, dropout_key):
    query_BqHK = nn.with_logical_constraint(query_BqHK, ("batch", "length", "heads", "kv"))
    key, value = (x.astype(dtype) for x in keys_and_values)
    block_key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
    block_bias = bias.of_queries(number * block, segments_Bq)
    return _mixed(query_BqHK, key, value, block_bias, dropout_rate, block_key)

  def visit(_, numbered_block):
    return None, of_block(*numbered_block, keys_and_values, bias, dropout_key)

  bias = bias.with_table_of_rows()
  keys_and_values = (widened(key_BLHK), widened(value_BLHK))
  numbered_blocks = (jnp.arange(blocks), split(query_BQHK), split(bias.query_segments_BQ))
  _, mixed = jax.lax.scan(visit, None, numbered_blocks)
  mixed = jnp.moveaxis(mixed, 0, 1)
  return mixed.reshape(rows, blocks * block, *mixed.shape[3:])[:, :queries]
