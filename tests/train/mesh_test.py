"""Meshes, the rules from logical axes to mesh axes, and the shardings of a whole state."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from dss_jax.config import MeshConfig
from dss_jax.errors import UserError
from dss_jax.model.t5 import init_params
from dss_jax.train.mesh import (
  logical_rules,
  make_mesh,
  param_shardings,
  rows_sharding,
  shardings_like,
)


@pytest.mark.parametrize(
  ("config", "batch_size", "shape"),
  [
    (MeshConfig(), 24, (8, 1)),
    (MeshConfig(), 20, (5, 1)),
    (MeshConfig(), 7, (7, 1)),
    (MeshConfig(), 11, (1, 1)),
    (MeshConfig(model=4), 24, (2, 4)),
    (MeshConfig(model=3), 24, (2, 3)),
    (MeshConfig(data=2), 24, (2, 1)),
    (MeshConfig(data=2, model=4), 24, (2, 4)),
  ],
)
def test_the_mesh_takes_as_many_devices_as_the_batch_divides_over(config, batch_size, shape):
  mesh = make_mesh(config, batch_size)
  assert mesh.axis_names == ("data", "model")
  assert (mesh.shape["data"], mesh.shape["model"]) == shape


@pytest.mark.parametrize(
  ("config", "batch_size", "words"),
  [
    (MeshConfig(data=9), 9, "needs 9 devices and there are 8"),
    (MeshConfig(data=4, model=4), 24, "needs 16 devices and there are 8"),
    (MeshConfig(model=9), 24, "needs 9 devices and there are 8"),
    (MeshConfig(data=5), 24, "--mesh data=5 does not divide the batch of 24 examples"),
  ],
)
def test_a_mesh_that_cannot_be_is_refused(config, batch_size, words):
  with pytest.raises(UserError, match=words) as caught:
    make_mesh(config, batch_size)
  assert "\n" not in str(caught.value)
  assert "choose" in str(caught.value)


def test_rules_split_what_divides(make_config, mesh_of):
  model = make_config().model
  rules = dict(logical_rules(model, mesh_of(2, 4)))
  assert rules["batch"] == "data"
  split = {axis for axis, mesh_axis in rules.items() if mesh_axis == "model"}
  assert split == {"vocab", "mlp", "heads", "joined_kv"}
  six_heads = dict(logical_rules(dataclasses.replace(model, num_heads=6), mesh_of(2, 4)))
  assert (six_heads["heads"], six_heads["joined_kv"], six_heads["mlp"]) == (None, None, "model")
  odd = dataclasses.replace(model, mlp_dim=33, vocab_size=130)
  rules = dict(logical_rules(odd, mesh_of(2, 4)))
  assert (rules["mlp"], rules["vocab"], rules["heads"]) == (None, None, "model")


@pytest.fixture
def boxed(make_config):
  return jax.eval_shape(functools.partial(init_params, make_config().model), jax.random.key(0))


@pytest.fixture
def laid_out(boxed, make_config, mesh_of):
  """(mesh, parameter shapes, their shardings) on 2 x 4 devices."""
  mesh = mesh_of(2, 4)
  rules = logical_rules(make_config().model, mesh)
  return mesh, nn.meta.unbox(boxed), param_shardings(boxed, mesh, rules)


def test_weights_are_split_over_the_model_axis(laid_out):
  _, _, shardings = laid_out
  encoder = shardings["encoder"]["layers_0"]
  specs = {
    "embedding": shardings["token_embedder"]["embedding"].spec,
    "query": encoder["attention"]["query"]["kernel"].spec,
    "out": encoder["attention"]["out"]["kernel"].spec,
    "wi": encoder["mlp"]["wi_0"]["kernel"].spec,
    "wo": encoder["mlp"]["wo"]["kernel"].spec,
    "logits": shardings["decoder"]["logits_dense"]["kernel"].spec,
    "bias": shardings["encoder"]["relpos_bias"]["rel_embedding"].spec,
    "norm": encoder["pre_mlp_layer_norm"]["scale"].spec,
  }
  model = "model"
  wanted = {
    "embedding": (model, None),
    "query": (None, model),
    "out": (model, None),
    "wi": (None, model),
    "wo": (model, None),
    "logits": (None, model),
    "bias": (model, None),
    "norm": (None,),
  }
  padded = {
    name: tuple(spec) + (None,) * (len(wanted[name]) - len(spec)) for name, spec in specs.items()
  }
  assert padded == wanted


@pytest.mark.parametrize("name", ["adamw", "adafactor", "chain"])
def test_the_optimizer_s_state_lies_as_the_weights_do(laid_out, name):
  mesh, params, shardings = laid_out
  optimizer = {
    "adamw": optax.adamw(1e-3),
    "adafactor": optax.adafactor(1e-3),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
  }[name]
  state = jax.eval_shape(optimizer.init, params)
  got = shardings_like(state, params, shardings, mesh)
  assert jax.tree.structure(got) == jax.tree.structure(state)
  leaves = jax.tree.leaves(params)
  moments = 0
  for (path, leaf), sharding in zip(
    jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(got), strict=True
  ):
    names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    weight = functools.reduce(lambda tree, key: tree[key], names, params) if names else None
    if weight is not None and weight.shape == leaf.shape:
      moments += 1
      want = functools.reduce(lambda tree, key: tree[key], names, shardings)
      assert sharding == want, path
    else:
      assert sharding.is_fully_replicated, path
  assert moments >= len(leaves)
  # And jit accepts it all.
  placed = jax.jit(
    lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state), out_shardings=got
  )()
  assert jax.tree.map(lambda leaf: leaf.sharding, placed) == got


def test_rows_are_split_over_the_data_axis(mesh_of):
  sharding = rows_sharding(mesh_of(2, 4))
  assert sharding.spec == PartitionSpec("data")
  array = jax.device_put(np.arange(12).reshape(4, 3), sharding)
  assert {shard.data.shape for shard in array.addressable_shards} == {(2, 3)}
