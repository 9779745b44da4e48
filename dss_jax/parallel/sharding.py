"""Shardings of weights, activations and optimizer states over the mesh.

The batch is sharded over 'data'. A weight is sharded over 'model' by heads, feed-forward width or
vocabulary; a large student's also over 'data', and gathered where it is used (ZeRO, Rajbhandari
et al. 2020). Heads that 'model' does not divide are not sharded: each device attends with all
heads from its own share of the positions (sequence parallelism, Korthikanti et al. 2022), which
costs no permutation.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dss_jax.config.schema import T5Config
from dss_jax.model.t5 import init_params

Rules = tuple[tuple[str, str | None], ...]

# A student with more bytes of float32 weights on a device is sharded over 'data', too.
MAX_WEIGHT_BYTES = 320 * 2**20


def logical_rules(config: T5Config, mesh: Mesh, *, split_length: bool = False) -> Rules:
  """Maps T5X's logical axis names to mesh axes, for activations; the first match wins.

  A dimension that the model axis does not divide is not sharded.

  Args:
    split_length: whether to shard activations by position over 'model' if the heads cannot be
      sharded. For training only, since decoding has one position at a time.
  """
  model = mesh.shape["model"]

  def if_divided(size: int | None) -> str | None:
    return "model" if size is not None and size % model == 0 else None

  heads = if_divided(config.num_heads)
  return (
    ("batch", "data"),
    ("vocab", if_divided(config.vocab_size)),
    ("mlp", if_divided(config.mlp_dim)),
    ("heads", heads),
    ("length", "model" if split_length and heads is None else None),
    ("embed", None),
    ("kv", None),
  )


def param_shardings(boxed_params: Any, mesh: Mesh, weights_over_data: bool | None = None) -> Any:
  """Returns a NamedSharding for each leaf of a parameter tree boxed with its logical axes.

  Args:
    weights_over_data: whether to shard weights over 'data', too; None does so if a device would
      otherwise store more than MAX_WEIGHT_BYTES of them.
  """
  if weights_over_data is None:
    leaves = jax.tree.leaves(nn.meta.unbox(boxed_params))
    weight_bytes = 4 * sum(leaf.size for leaf in leaves) / mesh.shape["model"]
    weights_over_data = weight_bytes > MAX_WEIGHT_BYTES
  specs = jax.tree.map(
    lambda leaf: _weight_spec(leaf.names, leaf.value.shape, mesh, weights_over_data),
    boxed_params,
    is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
  )
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def _weight_spec(
  names: Sequence[str], shape: Sequence[int], mesh: Mesh, over_data: bool
) -> PartitionSpec:
  """Shards one dimension of a weight over 'model', and with `over_data` one over 'data'.

  The embedding table is sharded by width over 'model', so that a lookup needs no other device.
  The scales of norms are sharded like the activations that they scale.
  """
  spec: list[str | tuple[str, ...] | None] = [None] * len(shape)
  model, data = mesh.shape["model"], mesh.shape["data"]
  if len([name for name in names if name != "layers"]) == 1:
    if over_data and shape[-1] % model == 0:
      spec[-1] = "model"
    return PartitionSpec(*spec)
  preferred = ["vocab", "mlp", "heads", "joined_kv", "embed"]
  if list(names) == ["vocab", "embed"]:
    preferred.reverse()
  dimensions = [names.index(name) for name in preferred if name in names]
  for dimension in dimensions:
    if shape[dimension] % model == 0:
      spec[dimension] = "model"
      break
  # A weight with an axis "heads" is a table of relative positions, which is small.
  if over_data and "heads" not in names:
    # Prefers a dimension that is not sharded yet.
    for dimension in sorted(dimensions, key=lambda d: spec[d] is not None):
      if spec[dimension] is None and shape[dimension] % data == 0:
        spec[dimension] = "data"
        break
      if spec[dimension] == "model" and shape[dimension] % (model * data) == 0:
        spec[dimension] = ("model", "data")
        break
  return PartitionSpec(*spec)


def params_shape(config: T5Config, mesh: Mesh, weights_over_data: bool | None = None) -> Any:
  """Returns the shapes and dtypes of a student's weights with their shardings on the mesh."""
  boxed = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    nn.meta.unbox(boxed),
    param_shardings(boxed, mesh, weights_over_data),
  )


def shardings_like(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
  """Returns shardings for a tree with parameter-shaped subtrees, such as an optimizer state.

  A leaf whose path ends in a parameter's path and that has its shape is sharded like it.
  Adafactor's factored moments take the parameter's sharding in the dimensions that they keep.
  Everything else (counters) is replicated.
  """
  known = {
    jax.tree_util.keystr(path): (leaf.shape, sharding)
    for (path, leaf), sharding in zip(
      jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
    )
  }
  replicated = NamedSharding(mesh, PartitionSpec())

  def choose(path, leaf):
    for start in range(len(path)):
      shape, sharding = known.get(jax.tree_util.keystr(path[start:]), (None, None))
      if shape is None:
        continue
      if shape == leaf.shape:
        return sharding
      dropped = _dropped_dimension(path[:start], shape)
      if dropped is not None and (*shape[:dropped], *shape[dropped + 1 :]) == leaf.shape:
        spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
        return NamedSharding(mesh, PartitionSpec(*spec[:dropped], *spec[dropped + 1 :]))
    return replicated

  return jax.tree_util.tree_map_with_path(choose, tree)


def _dropped_dimension(path: Sequence[Any], shape: Sequence[int]) -> int | None:
  """Returns the dimension that optax's factored moment at this path averages over.

  `v_row` averages over the parameter's longest dimension and `v_col` over the second longest; of
  two equal ones the later counts as longer (optax.scale_by_factored_rms).
  """
  if len(shape) < 2:
    return None
  names = {getattr(entry, "name", None) for entry in path}
  by_length = np.argsort(shape)
  if "v_row" in names:
    return int(by_length[-1])
  return int(by_length[-2]) if "v_col" in names else None


def rows_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of batch arrays: rows over the data axis."""
  return NamedSharding(mesh, PartitionSpec("data"))
