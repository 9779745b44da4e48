"""How weights and activations are split over the mesh, and the shardings of a state.

Rows are split over 'data'. A weight is split over 'model' by its heads, width or words, whichever
it has; a large student's is split over 'data' too, and put together where it is used (ZeRO,
Rajbhandari et al. 2020). Heads that 'model' does not divide are not split: each device attends
with all of them from its own share of the positions (as Korthikanti et al. 2022 do between the
matrix products), which costs no permutation.
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


# A student whose float32 weights take more than this on a device is split over 'data' too.
MOST_WEIGHT_BYTES = 320 * 2**20


def logical_rules(config: T5Config, mesh: Mesh, *, split_length: bool = False) -> Rules:
  """From T5X's logical axis names to mesh axes, for activations; the first that applies wins.

  A dimension that the model axis does not divide stays whole on every device.

  Args:
    split_length: where heads do not divide, activations without width or words to split are
      split over 'model' by position. For training: decoding has one position at a time.
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
  """A NamedSharding for each leaf of a parameter tree boxed with its logical axes.

  Args:
    weights_over_data: whether to split weights over 'data' too; None does so where a device
      would hold more than MOST_WEIGHT_BYTES of them.
  """
  if weights_over_data is None:
    leaves = jax.tree.leaves(nn.meta.unbox(boxed_params))
    weight_bytes = 4 * sum(leaf.size for leaf in leaves) / mesh.shape["model"]
    weights_over_data = weight_bytes > MOST_WEIGHT_BYTES
  specs = jax.tree.map(
    lambda leaf: _weight_spec(leaf.names, leaf.value.shape, mesh, weights_over_data),
    boxed_params,
    is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
  )
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def _weight_spec(
  names: Sequence[str], shape: Sequence[int], mesh: Mesh, over_data: bool
) -> PartitionSpec:
  """How a weight is split: one dimension over 'model', and one over 'data' where asked for.

  Of the table of embeddings, 'model' splits the width: a lookup then needs no word from another
  device. The scales of norms lie as the activations do that they scale.
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
  # What counts heads alone are the tables of relative positions, which are small.
  if over_data and "heads" not in names:
    # Another dimension than the one that is split already, if it divides.
    for dimension in sorted(dimensions, key=lambda d: spec[d] is not None):
      if spec[dimension] is None and shape[dimension] % data == 0:
        spec[dimension] = "data"
        break
      if spec[dimension] == "model" and shape[dimension] % (model * data) == 0:
        spec[dimension] = ("model", "data")
        break
  return PartitionSpec(*spec)


def params_shape(config: T5Config, mesh: Mesh, weights_over_data: bool | None = None) -> Any:
  """The shapes and dtypes of a student's weights with their shardings on the mesh."""
  boxed = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    nn.meta.unbox(boxed),
    param_shardings(boxed, mesh, weights_over_data),
  )


def shardings_like(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
  """Shardings for a tree that holds parameter-shaped subtrees, such as an optimizer's state.

  A leaf whose path ends in a parameter's path is laid out as the parameter where it has its
  shape, and so are Adafactor's factored moments, in the dimensions that they have of it;
  anything else (counters) is replicated.
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
  """The dimension that optax's factored moment of this path has averaged away.

  Its `v_row` lacks the longest dimension of the parameter and its `v_col` the second longest,
  the later one first where two are as long (optax.scale_by_factored_rms).
  """
  if len(shape) < 2:
    return None
  names = {getattr(entry, "name", None) for entry in path}
  by_length = np.argsort(shape)
  if "v_row" in names:
    return int(by_length[-1])
  return int(by_length[-2]) if "v_col" in names else None


def rows_sharding(mesh: Mesh) -> NamedSharding:
  """Batch arrays are split by rows over the data axis."""
  return NamedSharding(mesh, PartitionSpec("data"))
