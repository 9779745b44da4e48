"""The device mesh, the rules from logical axes to mesh axes, and the shardings they give."""

import functools
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dss_jax.config import MeshConfig, T5Config
from dss_jax.errors import UserError
from dss_jax.model.t5 import init_params

Rules = tuple[tuple[str, str | None], ...]


def make_mesh(config: MeshConfig, batch_size: int) -> Mesh:
  """The mesh ('data', 'model'); unless given, data is as large as the batch divides over.

  Raises UserError for a mesh that asks for more devices than there are, or whose data axis
  does not divide the batch.
  """
  devices = jax.devices()
  available = len(devices) // config.model
  data = config.data
  if data is None:
    data = max((n for n in range(1, available + 1) if batch_size % n == 0), default=0)
  if data == 0 or data * config.model > len(devices):
    raise UserError(
      f"--mesh data={data or 1},model={config.model} needs {max(data, 1) * config.model} devices "
      f"and there are {len(devices)}; choose numbers whose product is at most {len(devices)}"
    )
  if batch_size % data:
    raise UserError(
      f"--mesh data={data} does not divide the batch of {batch_size} examples; "
      f"choose a divisor of {batch_size}"
    )
  shape = (data, config.model)
  return Mesh(
    np.array(devices[: data * config.model]).reshape(shape),
    ("data", "model"),
    axis_types=(AxisType.Auto, AxisType.Auto),
  )


def logical_rules(config: T5Config, mesh: Mesh) -> Rules:
  """From T5X's logical axis names to mesh axes.

  A dimension that the model axis does not divide stays whole on every device: uneven shards
  are refused by jit, and heads split across devices cost a permutation each.
  """
  model = mesh.shape["model"]
  heads = "model" if config.num_heads % model == 0 else None
  return (
    ("batch", "data"),
    ("vocab", "model" if (config.vocab_size or 0) % model == 0 else None),
    ("mlp", "model" if config.mlp_dim % model == 0 else None),
    ("heads", heads),
    ("joined_kv", heads),
    ("embed", None),
    ("kv", None),
    ("length", None),
    ("layers", None),
    ("relpos_buckets", None),
  )


def param_shardings(boxed_params: Any, mesh: Mesh, rules: Rules) -> Any:
  """A NamedSharding for each leaf of a parameter tree boxed with its logical axes."""
  return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed_params), mesh, rules)


def params_shape(config: T5Config, mesh: Mesh) -> Any:
  """The shapes and dtypes of a student's weights with their shardings on the mesh."""
  boxed = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    nn.meta.unbox(boxed),
    param_shardings(boxed, mesh, logical_rules(config, mesh)),
  )


def shardings_like(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
  """Shardings for a tree that holds parameter-shaped subtrees, such as an optimizer's state.

  A leaf whose path ends in a parameter's path and that has its shape is laid out as the
  parameter; anything else (counters, factored moments) is replicated.
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
      if shape == leaf.shape:
        return sharding
    return replicated

  return jax.tree_util.tree_map_with_path(choose, tree)


def rows_sharding(mesh: Mesh) -> NamedSharding:
  """Batch arrays are split by rows over the data axis."""
  return NamedSharding(mesh, PartitionSpec("data"))
