"""Scanned layers and recomputation: the same network, weights and checkpoints as unrolled."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dss_jax.checkpoints.arrays import in_memory, lay_out, model_shapes
from dss_jax.config.schema import MeshConfig
from dss_jax.decoding.beam import beam_search
from dss_jax.decoding.greedy import greedy
from dss_jax.model.layer_stacks import stacked_params, to_layout_of, unrolled, unrolled_config
from dss_jax.model.t5 import Transformer, init_params
from dss_jax.parallel.mesh import make_mesh
from dss_jax.parallel.sharding import params_shape
from tests.fixtures.networks import TINY

# More decoder than encoder layers, so that a stack taken for the other is found out.
UNROLLED = TINY
SCANNED = dataclasses.replace(UNROLLED, scan_layers=True)


def batch():
  generator = np.random.default_rng(0)
  segments = np.array([[1] * 5 + [2] * 4 + [0] * 2]), np.array([[1] * 3 + [2] * 4 + [0]])
  ids = [generator.integers(2, 24, each.shape) * (each > 0) for each in segments]
  return ids[0], segments[0], ids[1], segments[1]


def logits_and_gradient(config):
  """A compiled function: the logits, and of the sum of their squares the gradient, unrolled."""

  def total(params, key):
    rngs = None if key is None else {"dropout": key}
    logits = Transformer(config).apply(
      {"params": params}, *batch(), deterministic=key is None, rngs=rngs
    )
    return jnp.sum(jnp.square(logits)), logits

  differentiate = jax.jit(jax.grad(total, has_aux=True))

  def run(params, key=None):
    gradient, logits = differentiate(params, key)
    return logits, unrolled(gradient, config)[0]

  return run


def assert_close(got, want):
  np.testing.assert_allclose(got[0], want[0], rtol=1e-4, atol=1e-5)
  # What cancels to next to nothing, as for keys with the same logits, keeps the whole's rounding.
  rounding = 1e-7 * np.linalg.norm([np.linalg.norm(leaf) for leaf in jax.tree.leaves(want[1])])
  for (path, ours), theirs in zip(
    jax.tree_util.tree_leaves_with_path(got[1]), jax.tree.leaves(want[1]), strict=True
  ):
    error = np.linalg.norm(ours - theirs)
    assert error <= 1e-5 * np.linalg.norm(theirs) + rounding, jax.tree_util.keystr(path)


def shapes_and_axes(boxed):
  return {
    "/".join(key.key for key in path): (box.names, box.value.shape)
    for path, box in jax.tree_util.tree_leaves_with_path(
      boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )
  }


@pytest.mark.parametrize("shared", [True, False])
def test_the_layers_of_a_stack_lie_along_the_first_axis(shared):
  config = dataclasses.replace(SCANNED, shared_relpos_bias=shared)
  boxed = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
  got = shapes_and_axes(boxed)
  names = ("layers", "embed", "joined_kv")
  assert got["encoder/layers/attention/query/kernel"] == (names, (1, 16, 16))
  assert got["decoder/layers/self_attention/query/kernel"] == (names, (2, 16, 16))
  assert got["encoder/layers/pre_mlp_layer_norm/scale"] == (("layers", "embed"), (1, 16))
  assert got["encoder/encoder_norm/scale"] == (("embed",), (16,))
  bias = "encoder/relpos_bias" if shared else "encoder/layers/relpos_bias"
  assert got[f"{bias}/rel_embedding"][1] == ((2, 32) if shared else (1, 2, 32))
  # And that is what the network itself would make.
  variables = jax.eval_shape(Transformer(config).init, jax.random.key(0), *batch())
  assert shapes_and_axes(variables["params"]) == got


@pytest.mark.slow
def test_fresh_weights_are_the_same_in_either_layout():
  def fresh(config):
    return jax.jit(lambda key: nn.meta.unbox(init_params(config, key)))(jax.random.key(3))

  scanned, _ = unrolled(fresh(SCANNED), SCANNED)
  jax.tree.map(np.testing.assert_array_equal, scanned, fresh(UNROLLED))


@pytest.mark.parametrize("shared", [True, False])
def test_logits_and_gradients_are_those_of_the_plain_network(random_params, shared):
  """With scanned layers, with recomputation, and with both."""
  plain = dataclasses.replace(UNROLLED, shared_relpos_bias=shared)
  params = random_params(plain)
  want = logits_and_gradient(plain)(params)
  for scan, remat in [(True, "full"), (False, "minimal")] if shared else [(True, "none")]:
    config = dataclasses.replace(plain, scan_layers=scan, remat=remat)
    own = stacked_params(params) if scan else params
    assert_close(logits_and_gradient(config)(own), want)


@pytest.mark.slow
def test_what_is_computed_again_is_dropped_again(random_params):
  """With dropout, recomputation leaves logits and gradients as they are."""
  config = dataclasses.replace(SCANNED, dropout_rate=0.3)
  params = random_params(config)
  one, other = (jax.random.key(seed) for seed in (1, 2))
  plain = logits_and_gradient(config)
  recomputed = logits_and_gradient(dataclasses.replace(config, remat="full"))
  want = plain(params, one)
  assert_close(recomputed(params, one), want)
  assert np.abs(plain(params, other)[0] - want[0]).max() > 0.01


def test_each_scanned_layer_has_dropout_of_its_own():
  """Layers that add nothing but a constant, dropped out, to a stream of zeros."""
  config = dataclasses.replace(SCANNED, dropout_rate=0.5, num_encoder_layers=2)
  boxed = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
  zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), nn.meta.unbox(boxed))
  zeros["token_embedder"]["embedding"] += 1.0
  zeros["encoder"]["encoder_norm"]["scale"] += 1.0
  layers = zeros["encoder"]["layers"]
  layers["pre_attention_layer_norm"]["scale"] += 1.0
  for name in ("value", "out"):
    layers["attention"][name]["kernel"] += 1.0
  inputs, segments = np.ones((1, 64), np.int32), np.ones((1, 64), np.int32)

  @jax.jit
  def encoded(layers):
    params = {**zeros, "encoder": {**zeros["encoder"], "layers": layers}}
    return Transformer(config).apply(
      {"params": params},
      inputs,
      segments,
      deterministic=False,
      rngs={"dropout": jax.random.key(0)},
      method=Transformer.encode,
    )

  def first_alone(value, *, layer):
    return np.where(np.arange(2).reshape(2, *[1] * (value.ndim - 1)) == layer, value, 0)

  seen = [
    encoded(jax.tree.map(functools.partial(first_alone, layer=layer), layers)) for layer in (0, 1)
  ]
  assert not np.array_equal(*(np.asarray(each) > np.median(each) for each in seen))


def test_compiling_does_not_grow_with_the_layers():
  """The lowered program of forward and backward pass is as long for 12 layers as for 3."""

  def length(layers):
    config = dataclasses.replace(
      SCANNED, num_encoder_layers=layers, num_decoder_layers=layers, remat="full"
    )
    boxed = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    total = jax.grad(
      lambda params: jnp.sum(Transformer(config).apply({"params": params}, *batch()))
    )
    return len(jax.jit(total).lower(nn.meta.unbox(boxed)).as_text().splitlines())

  assert length(12) == length(3)


@pytest.mark.parametrize("decode", [greedy, pytest.param(beam_search, marks=pytest.mark.slow)])
def test_a_scanned_student_decodes_as_an_unrolled_one(random_params, decode):
  params = random_params(UNROLLED, seed=18, gain=2.0)
  inputs = np.array([[5, 6, 7, 8, 1, 0], [9, 3, 1, 0, 0, 0]])

  def written(params, config):
    run = functools.partial(decode, config=config, max_decode_tokens=6, eos_id=1, pad_id=0)
    return jax.jit(run)(params, encoder_input_tokens_BL=inputs)

  got, want = written(stacked_params(params), SCANNED), written(params, UNROLLED)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), got, want)


@pytest.fixture
def mesh():
  return make_mesh(MeshConfig(data=2, model=4), 4)


@pytest.mark.parametrize("shared", [True, False])
def test_weights_on_disk_are_laid_out_in_either_layout(random_params, mesh, shared):
  config = dataclasses.replace(SCANNED, shared_relpos_bias=shared)
  assert model_shapes(config) == model_shapes(unrolled_config(config))
  drawn = random_params(unrolled_config(config))
  arrays = {
    ".".join(key.key for key in path): in_memory(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(drawn)
  }
  shape = params_shape(config, mesh)
  placed = lay_out(arrays, shape)
  jax.tree.map(np.testing.assert_array_equal, placed, stacked_params(drawn))
  assert jax.tree.map(lambda leaf: leaf.sharding, placed) == jax.tree.map(
    lambda leaf: leaf.sharding, shape
  )


def test_weights_on_devices_go_from_one_layout_to_the_other_and_back(random_params, mesh):
  drawn = random_params(UNROLLED)
  shapes = {config.scan_layers: params_shape(config, mesh) for config in (UNROLLED, SCANNED)}

  def placed(shape):
    return jax.device_put(drawn, jax.tree.map(lambda leaf: leaf.sharding, shape))

  there = to_layout_of(placed(shapes[False]), shapes[True])
  jax.tree.map(np.testing.assert_array_equal, there, stacked_params(drawn))
  assert jax.tree.map(lambda leaf: leaf.sharding, there) == jax.tree.map(
    lambda leaf: leaf.sharding, shapes[True]
  )
  back = to_layout_of(there, shapes[False])
  jax.tree.map(np.testing.assert_array_equal, back, drawn)
  assert jax.tree.map(lambda leaf: leaf.sharding, back) == jax.tree.map(
    lambda leaf: leaf.sharding, shapes[False]
  )
