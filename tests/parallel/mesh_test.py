"""Meshes, rules from logical axes to mesh axes, and shardings of a train state."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from dss_jax.config.schema import MeshConfig, OptimizerConfig
from dss_jax.errors import UserError
from dss_jax.model.t5 import init_params
from dss_jax.parallel import sharding as shardings_module
from dss_jax.parallel.mesh import make_mesh
from dss_jax.parallel.sharding import logical_rules, param_shardings, rows_sharding, shardings_like
from dss_jax.train.optimizer import make_optimizer


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
def test_the_data_axis_is_the_largest_divisor_of_the_batch_size(config, batch_size, shape):
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
def test_an_impossible_mesh_is_refused(config, batch_size, words):
  with pytest.raises(UserError, match=words) as caught:
    make_mesh(config, batch_size)
  assert "\n" not in str(caught.value)
  assert "choose" in str(caught.value)


def test_rules_shard_the_axes_that_divide(make_config, mesh_of):
  model = make_config().model
  rules = dict(logical_rules(model, mesh_of(2, 4)))
  assert rules["batch"] == "data"
  split = {axis for axis, mesh_axis in rules.items() if mesh_axis == "model"}
  assert split == {"vocab", "mlp", "heads"}
  six_heads = dict(logical_rules(dataclasses.replace(model, num_heads=6), mesh_of(2, 4)))
  assert (six_heads["heads"], six_heads["mlp"]) == (None, "model")
  odd = dataclasses.replace(model, mlp_dim=33, vocab_size=130)
  rules = dict(logical_rules(odd, mesh_of(2, 4)))
  assert (rules["mlp"], rules["vocab"], rules["heads"]) == (None, None, "model")


@pytest.mark.parametrize(
  ("names", "heads", "spec"),
  [
    (("batch", "length", "embed"), 4, ("data", None, None)),
    (("batch", "length", "mlp"), 4, ("data", None, "model")),
    (("batch", "length", "heads", "kv"), 4, ("data", None, "model", None)),
    # Heads that do not divide: activations are sharded by position.
    (("batch", "length", "embed"), 6, ("data", "model", None)),
    (("batch", "length", "mlp"), 6, ("data", None, "model")),
    (("batch", "length", "heads", "kv"), 6, ("data", "model", None, None)),
  ],
)
def test_positions_are_sharded_where_heads_are_not(make_config, mesh_of, names, heads, spec):
  model = dataclasses.replace(make_config().model, num_heads=heads)
  rules = logical_rules(model, mesh_of(2, 4), split_length=True)
  got = tuple(nn.logical_to_mesh_axes(names, rules))
  assert got + (None,) * (len(spec) - len(got)) == spec


@pytest.fixture
def boxed(make_config):
  return jax.eval_shape(functools.partial(init_params, make_config().model), jax.random.key(0))


@pytest.fixture
def sharded_params(boxed, make_config, mesh_of):
  """Returns (mesh, parameter shapes, their shardings) on 2 x 4 devices."""
  mesh = mesh_of(2, 4)
  return mesh, nn.meta.unbox(boxed), param_shardings(boxed, mesh)


def specs_of(shardings):
  """Returns the specs of one weight of each kind, padded to two dimensions."""
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
  return {name: (*spec, None, None)[: 1 if name == "norm" else 2] for name, spec in specs.items()}


MODEL, DATA = "model", "data"
OVER_MODEL = {
  "embedding": (None, MODEL),
  "query": (None, MODEL),
  "out": (MODEL, None),
  "wi": (None, MODEL),
  "wo": (MODEL, None),
  "logits": (None, MODEL),
  "bias": (MODEL, None),
  "norm": (None,),
}
OVER_BOTH = {
  "embedding": (DATA, MODEL),
  "query": (DATA, MODEL),
  "out": (MODEL, DATA),
  "wi": (DATA, MODEL),
  "wo": (MODEL, DATA),
  "logits": (DATA, MODEL),
  "bias": (MODEL, None),
  "norm": (MODEL,),
}


def test_weights_are_sharded_over_the_model_axis(sharded_params):
  _, _, shardings = sharded_params
  assert specs_of(shardings) == OVER_MODEL


def test_weights_are_sharded_over_both_axes_on_request(boxed, mesh_of):
  mesh = mesh_of(2, 4)
  assert specs_of(param_shardings(boxed, mesh, True)) == OVER_BOTH
  assert specs_of(param_shardings(boxed, mesh, False)) == OVER_MODEL


def test_large_weights_are_sharded_over_both_axes(boxed, mesh_of, monkeypatch):
  mesh = mesh_of(2, 4)
  size = sum(leaf.size for leaf in jax.tree.leaves(nn.meta.unbox(boxed)))
  # Bytes of float32 weights on a device, sharded four ways over 'model'.
  monkeypatch.setattr(shardings_module, "MAX_WEIGHT_BYTES", size)
  assert specs_of(param_shardings(boxed, mesh)) == OVER_MODEL
  monkeypatch.setattr(shardings_module, "MAX_WEIGHT_BYTES", size - 1)
  assert specs_of(param_shardings(boxed, mesh)) == OVER_BOTH


def test_the_data_axis_shards_a_dimension_that_divides(make_config, mesh_of):
  """A width of 18 divides by 2 and not by 4; one of 6 heads of 3 by 2 in the other dimension."""
  model = dataclasses.replace(make_config().model, emb_dim=18, num_heads=6, head_dim=3, mlp_dim=33)
  boxed = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
  specs = specs_of(param_shardings(boxed, mesh_of(2, 4), True))
  assert specs["wi"] == (DATA, None)
  assert specs["query"] == (None, DATA)
  assert specs["embedding"] == (MODEL, DATA)
  assert specs["bias"] == (None, None)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "chain"])
def test_the_optimizer_state_is_sharded_like_the_weights(sharded_params, name):
  mesh, params, shardings = sharded_params
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
  # And jit accepts them.
  placed = jax.jit(
    lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state), out_shardings=got
  )()
  assert jax.tree.map(lambda leaf: leaf.sharding, placed) == got


@pytest.mark.parametrize("scan_layers", [False, True])
def test_adafactor_s_factored_moments_are_sharded_like_the_weights(
  make_config, mesh_of, scan_layers
):
  """A [256, 512] matrix sharded over both axes: row moments by data, column moments by model."""
  model = make_config(
    model={"emb_dim": 256, "mlp_dim": 512, "num_encoder_layers": 3, "scan_layers": scan_layers}
  ).model
  boxed = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
  params, mesh = nn.meta.unbox(boxed), mesh_of(2, 4)
  shardings = param_shardings(boxed, mesh, True)
  state = jax.eval_shape(make_optimizer(OptimizerConfig(), 10).init, params)
  got = shardings_like(state, params, shardings, mesh)
  layers = [None] if scan_layers else []
  wanted = {"v_row": (*layers, DATA), "v_col": (*layers, MODEL)}
  found = set()
  for (path, leaf), sharding in zip(
    jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(got), strict=True
  ):
    names = jax.tree_util.keystr(path)
    moment = next((name for name in wanted if f".{name}" in names), None)
    if moment and "encoder" in names and "wi_0" in names and "decoder" not in names:
      assert leaf.shape == (*([3] if scan_layers else []), 256 if moment == "v_row" else 512)
      assert tuple(sharding.spec) == wanted[moment]
      found.add(moment)
  assert found == set(wanted)


def test_batch_rows_are_sharded_over_the_data_axis(mesh_of):
  sharding = rows_sharding(mesh_of(2, 4))
  assert sharding.spec == PartitionSpec("data")
  array = jax.device_put(np.arange(12).reshape(4, 3), sharding)
  assert {shard.data.shape for shard in array.addressable_shards} == {(2, 3)}
