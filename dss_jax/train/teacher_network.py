"""A frozen T5 whose outputs the student is trained on, computed within the step."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dss_jax.config.schema import T5Config, WeightType
from dss_jax.decoding.weights import Matrix
from dss_jax.losses.signals import NetworkOutputs
from dss_jax.model.t5 import Transformer
from dss_jax.parallel.sharding import logical_rules, params_shape


@dataclasses.dataclass
class TeacherNetwork:
  """A teacher on the student's mesh, by its own sharding rules.

  Attributes:
    config: its architecture; the dtype is that of its activations.
    weights: how its matrices are kept.
    params: them, on the mesh; None for a step that is only compiled.
  """

  config: T5Config
  mesh: Mesh
  weights: WeightType = "float32"
  params: Any = None

  @property
  def params_shape(self) -> Any:
    """The shapes of the stored weights with their shardings."""
    stored = jax.eval_shape(functools.partial(_stored, weights=self.weights), self._whole_shape)
    return jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      stored,
      unflatten_dict(self._shardings()),
    )

  def load(self, params: Any) -> None:
    """Takes float32 weights on the mesh; those that it converts are freed one by one."""
    flat = flatten_dict(params)
    del params
    # One function for each sharding: what it compiles for a shape serves all layers.
    converters: dict[Any, Any] = {}
    for name, sharding in self._shardings().items():
      if isinstance(sharding, Matrix):
        convert = functools.partial(_stored_leaf, name[-1], weights=self.weights)
        jitted = jax.jit(convert, out_shardings=sharding)
        flat[name] = converters.setdefault(sharding.values, jitted)(flat.pop(name))
      else:
        flat[name] = jax.device_put(flat.pop(name), sharding)
    self.params = unflatten_dict(flat)

  @property
  def _whole_shape(self) -> Any:
    return params_shape(self.config, self.mesh)

  def _shardings(self) -> dict[tuple[str, ...], Any]:
    """Returns the sharding of each stored weight, by its path; a Matrix has two."""
    replicated = NamedSharding(self.mesh, PartitionSpec())

    def of(name: str, leaf: jax.ShapeDtypeStruct) -> Any:
      stored = jax.eval_shape(functools.partial(_stored_leaf, name, weights=self.weights), leaf)
      if not isinstance(stored, Matrix):
        return leaf.sharding
      scales: Any = None if stored.scales is None else replicated
      return dataclasses.replace(stored, values=leaf.sharding, scales=scales)

    return {path: of(path[-1], leaf) for path, leaf in flatten_dict(self._whole_shape).items()}

  def outputs(
    self, params: Any, batch: Mapping[str, jax.Array], layers: Mapping[str, tuple[int, ...]]
  ) -> NetworkOutputs:
    """Computes the network's outputs of a batch, without dropout and without gradient.

    Args:
      params: the stored weights.
      layers: the states to keep, by stack.
    """
    with nn.logical_axis_rules(logical_rules(self.config, self.mesh, split_length=True)):
      return network_outputs(_whole(jax.lax.stop_gradient(params)), self.config, batch, layers)


def network_outputs(
  params: Any,
  config: T5Config,
  batch: Mapping[str, jax.Array],
  layers: Mapping[str, tuple[int, ...]],
  key: jax.Array | None = None,
) -> NetworkOutputs:
  """Computes a network's outputs of a packed batch.

  Args:
    layers: the states to keep, by stack.
    key: for dropout; None disables it.
  """
  outputs: Any = Transformer(config).apply(
    {"params": params},
    batch["encoder_input_tokens"],
    batch["encoder_segment_ids"],
    batch["decoder_input_tokens"],
    batch["decoder_segment_ids"],
    batch.get("decoder_cross_segment_ids"),
    deterministic=key is None,
    keep_encoder=layers["encoder"],
    keep_decoder=layers["decoder"],
    rngs=None if key is None else {"dropout": key},
    method=Transformer.outputs,
  )
  return NetworkOutputs.of(outputs, params, config)


def _stored(params: Any, *, weights: WeightType) -> Any:
  flat = flatten_dict(params)
  return unflatten_dict(
    {path: _stored_leaf(path[-1], leaf, weights=weights) for path, leaf in flat.items()}
  )


def _stored_leaf(name: str, leaf: jax.Array, *, weights: WeightType) -> Any:
  """Stores kernels in the weight type; the rest is float32."""
  if weights == "float32" or name != "kernel":
    return leaf
  # The sum goes over the inputs, the last dimension but one of a kernel, scanned or not.
  return Matrix.of(leaf, weights, inputs=-2)


def _whole(params: Any) -> Any:
  return jax.tree.map(
    lambda leaf: leaf.whole(jnp.float32) if isinstance(leaf, Matrix) else leaf,
    params,
    is_leaf=lambda leaf: isinstance(leaf, Matrix),
  )
