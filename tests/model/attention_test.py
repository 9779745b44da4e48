"""T5's attention against plain numpy, and by blocks of queries against all at once."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, Mesh, PartitionSpec

from dss_jax.config.schema import T5Config
from dss_jax.model import attention
from dss_jax.model.attention import (
  Attention,
  Bias,
  query_block,
  relative_bias,
  relative_position_bucket,
  same_segment_bias,
)
from dss_jax.model.t5 import Transformer
from dss_jax.plan.collectives import totals

CONFIG = T5Config(
  emb_dim=6,
  num_heads=2,
  head_dim=3,
  mlp_dim=5,
  num_encoder_layers=1,
  num_decoder_layers=1,
  vocab_size=16,
  dropout_rate=0.0,
)
KEY = jax.random.key(0)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(x):
  x = np.exp(x - x.max(axis=-1, keepdims=True))
  return x / x.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
  ("relative", "bucket"),
  [
    # Keys to the left: 0..7 exact, then 8 * (1 + log(d / 8) / log(16)) rounded down, 15 at most.
    (0, 0), (-1, 1), (-7, 7), (-8, 8), (-11, 8), (-12, 9), (-16, 10), (-64, 14), (-90, 14),
    (-91, 15), (-127, 15), (-128, 15), (-10_000, 15),
    # Keys to the right: the same, 16 higher.
    (1, 17), (7, 23), (8, 24), (12, 25), (64, 30), (128, 31), (10_000, 31),
  ],
)  # fmt: skip
def test_bidirectional_buckets_by_hand(relative, bucket):
  got = relative_position_bucket(np.array([relative]), bidirectional=True)
  assert got.tolist() == [bucket]


@pytest.mark.parametrize(
  ("relative", "bucket"),
  [
    # 0..15 exact, then 16 * (1 + log(d / 16) / log(8)) rounded down, 31 at most.
    (0, 0), (-1, 1), (-15, 15), (-16, 16), (-18, 16), (-19, 17), (-32, 21), (-64, 26), (-112, 30),
    (-113, 31), (-128, 31), (-10_000, 31),
    # A key to the right counts as here; it is masked anyway.
    (1, 0), (50, 0),
  ],
)  # fmt: skip
def test_causal_buckets_by_hand(relative, bucket):
  got = relative_position_bucket(np.array([relative]), bidirectional=False)
  assert got.tolist() == [bucket]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
  ("first", "queries", "keys"), [(0, 5, 7), (0, 9, 4), (6, 1, 9), (64, 8, 200)]
)
def test_the_bias_is_that_of_each_pair_s_bucket(first, queries, keys, bidirectional):
  table = normal(2, 32)
  relative = np.arange(keys)[None, :] - (first + np.arange(queries))[:, None]

  @jax.jit
  def both(table, relative):
    bias = relative_bias(table, first, queries, keys, bidirectional=bidirectional)
    return bias, relative_position_bucket(relative, bidirectional=bidirectional)

  got, bucket = jax.device_get(both(table, relative))
  np.testing.assert_array_equal(got[0], table[:, bucket])


def test_the_bias_keeps_segments_apart():
  bias = same_segment_bias(jnp.array([[1, 2]]), jnp.array([[1, 1, 2, 0]]))
  assert bias.shape == (1, 1, 2, 4)
  np.testing.assert_array_equal(
    bias[0, 0] == 0, [[True, True, False, False], [False, False, True, False]]
  )
  assert bias.min() == np.float32(-1e10)


def test_attention_by_plain_numpy():
  """No scaling of the logits: T5 has it in the query's initialiser."""
  x, memory, bias = normal(2, 3, 6), normal(2, 4, 6, seed=1), normal(1, 2, 3, 4, seed=2)
  kernels = {name: normal(6, 6, seed=i) for i, name in enumerate(("query", "key", "value", "out"))}

  def run(module):
    key, value = module.keys_and_values(memory)
    return module(x, key, value, bias, deterministic=True)

  params = {name: {"kernel": kernel} for name, kernel in kernels.items()}
  got = jax.jit(nn.apply(run, Attention(CONFIG)))({"params": params})
  query = (x @ kernels["query"]).reshape(2, 3, 2, 3)
  key = (memory @ kernels["key"]).reshape(2, 4, 2, 3)
  value = (memory @ kernels["value"]).reshape(2, 4, 2, 3)
  weights = softmax(np.einsum("bqhk,blhk->bhql", query, key) + bias)
  want = np.einsum("bhql,blhk->bqhk", weights, value).reshape(2, 3, 6) @ kernels["out"]
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_fresh_weights_have_t5x_s_spread():
  """Queries carry the 1 / sqrt(head width) that the logits are not divided by."""
  config = dataclasses.replace(CONFIG, emb_dim=256, num_heads=16, head_dim=16, mlp_dim=1024)
  x = np.zeros((1, 1, 256), np.float32)

  def run(module):
    key, value = module.keys_and_values(x)
    return module(x, key, value, np.zeros((1, 1, 1, 1), np.float32), deterministic=True)

  _, variables = jax.jit(nn.init_with_output(run, Attention(config)))(KEY)
  spread = {name: np.std(each["kernel"].value) for name, each in variables["params"].items()}
  assert spread["query"] == pytest.approx(1 / math.sqrt(256 * 16), rel=0.02)
  for name in ("key", "value", "out"):
    assert spread[name] == pytest.approx(1 / math.sqrt(256), rel=0.02)


def segments(rows, length, seed):
  """Rows of three segments and a little padding."""
  cuts = np.sort(np.random.default_rng(seed).integers(0, 4, (rows, length)), axis=1)
  return cuts[:, ::-1].astype(np.int32)


CASES = {
  # Queries, keys, causal, with a table.
  "encoder": (37, 37, False, True),
  "decoder": (29, 29, True, True),
  "cross": (21, 40, False, False),
}


def case(name, heads=2, rows=2):
  """(inputs that are differentiated, Bias without its table)."""
  queries, keys, causal, with_table = CASES[name]
  inputs = {
    "query": normal(rows, queries, heads, 3),
    "key": normal(rows, keys, heads, 3, seed=1),
    "value": normal(rows, keys, heads, 3, seed=2),
  }
  if with_table:
    inputs["table"] = normal(heads, 32, seed=3)
  query_segments = segments(rows, queries, 4)
  key_segments = query_segments if queries == keys else segments(rows, keys, 5)
  return inputs, Bias(query_segments, key_segments, causal=causal)


def mixed(mix, inputs, bias, rate=0.0, key=None):
  if "table" in inputs:
    bias = bias.with_table(inputs["table"])
  bias = bias if mix is attention._mixed_by_blocks else bias.whole()
  return mix(inputs["query"], inputs["key"], inputs["value"], bias, rate, key)


def values(mix, inputs, bias):
  return jax.jit(lambda inputs: mixed(mix, inputs, bias))(inputs)


def value_and_gradient(mix, inputs, bias, rate=0.0, key=None):
  weights = normal(*inputs["query"].shape, seed=9)

  def total(inputs):
    return jnp.sum(mixed(mix, inputs, bias, rate, key).astype(jnp.float32) * weights)

  return jax.jit(jax.value_and_grad(total))(inputs)


@pytest.fixture
def blocks_of_eight(monkeypatch):
  monkeypatch.setattr(attention, "LOGITS_BYTES", 1)


@pytest.mark.parametrize("name", CASES)
def test_blocks_give_what_all_queries_at_once_give(blocks_of_eight, name):
  """Values, and the gradient of everything, the table of positions included."""
  inputs, bias = case(name)
  assert query_block(bias, 2) == 8
  np.testing.assert_allclose(
    values(attention._mixed_by_blocks, inputs, bias),
    values(attention._mixed, inputs, bias),
    rtol=1e-5,
    atol=1e-6,
  )
  value, gradient = value_and_gradient(attention._mixed_by_blocks, inputs, bias)
  want_value, want = value_and_gradient(attention._mixed, inputs, bias)
  np.testing.assert_allclose(value, want_value, rtol=1e-5)
  for field in inputs:
    size = np.linalg.norm(want[field])
    assert size > 0
    assert np.linalg.norm(gradient[field] - want[field]) <= 1e-5 * size, field


def test_the_cases_tell_masks_and_positions_apart(blocks_of_eight):
  """Else blocks that ignore them would pass the test above."""
  inputs, bias = case("decoder")
  got = values(attention._mixed_by_blocks, inputs, bias)
  others = [
    (inputs, dataclasses.replace(bias, causal=False)),
    (inputs, dataclasses.replace(bias, query_segments_BQ=np.ones_like(bias.query_segments_BQ))),
    ({**inputs, "table": 2 * inputs["table"]}, bias),
  ]
  for other in others:
    assert np.abs(values(attention._mixed_by_blocks, *other) - got).max() > 0.1


def test_the_backward_pass_drops_what_the_forward_pass_did(blocks_of_eight):
  """The mix is linear in the values, so their gradient times the values is the mix itself."""
  inputs, bias = case("encoder")
  key = jax.random.key(1)
  mix = attention._mixed_by_blocks
  value, gradient = value_and_gradient(mix, inputs, bias, 0.3, key)
  np.testing.assert_allclose(np.vdot(gradient["value"], inputs["value"]), value, rtol=1e-4)
  other, _ = value_and_gradient(mix, inputs, bias, 0.3, jax.random.key(2))
  assert abs(other - value) > 0.01


def test_each_block_has_a_dropout_mask_of_its_own(blocks_of_eight):
  """Every query sees 400 keys alike, whose values tell which weights were kept."""
  keys = 400
  query = np.zeros((1, 24, 1, keys), np.float32)
  value = np.eye(keys, dtype=np.float32)[None, :, None]
  bias = Bias(np.ones((1, 24), np.int32), np.ones((1, keys), np.int32))
  inputs = {"query": query, "key": query[:, :1] + value * 0, "value": value}
  mix = jax.jit(lambda inputs: mixed(attention._mixed_by_blocks, inputs, bias, 0.1, KEY))
  weights = np.asarray(mix(inputs))
  kept = weights[0, :, 0] > 0
  np.testing.assert_allclose(weights[0, :, 0][kept], 1 / 0.9 / keys, rtol=1e-5)
  # Of 9,600 draws the share is within four standard deviations of the rate.
  assert abs((~kept).mean() - 0.1) < 4 * math.sqrt(0.1 * 0.9 / kept.size)
  assert not np.array_equal(kept[:8], kept[8:16])


def test_the_softmax_of_bfloat16_activations_is_worked_out_in_float32():
  """Logits around 100, which bfloat16 has in steps of a half."""
  query, key, value = (
    jnp.asarray(scale * normal(2, 9, 2, 64, seed=seed), jnp.bfloat16)
    for seed, scale in ((0, 4.0), (1, 4.0), (2, 1.0))
  )
  got = attention._mixed(query, key, value, np.zeros((1, 1, 1, 1), np.float32), 0.0, None)
  assert got.dtype == jnp.bfloat16
  query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
  logits = np.einsum("bqhk,blhk->bhql", query, key)
  assert np.abs(logits).max() > 100
  want = np.einsum("bhql,blhk->bqhk", softmax(logits), value)
  np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=0.02)


def test_gradients_of_bfloat16_keys_add_up_in_float32(blocks_of_eight):
  """Of 200 blocks, each too small a part to count in bfloat16."""
  rows, queries, keys = 1, 1600, 8
  inputs = {
    "query": jnp.asarray(normal(rows, queries, 1, 4), jnp.bfloat16),
    "key": jnp.asarray(normal(rows, keys, 1, 4, seed=1), jnp.bfloat16),
    "value": jnp.asarray(normal(rows, keys, 1, 4, seed=2), jnp.bfloat16),
  }
  bias = Bias(np.ones((rows, queries), np.int32), np.ones((rows, keys), np.int32))

  def gradient(mix, inputs):
    def total(value):
      return jnp.sum(mixed(mix, {**inputs, "value": value}, bias).astype(jnp.float32))

    return np.asarray(jax.jit(jax.grad(total))(inputs["value"]), np.float32)

  got = gradient(attention._mixed_by_blocks, inputs)
  want = gradient(attention._mixed, jax.tree.map(lambda x: x.astype(jnp.float32), inputs))
  np.testing.assert_allclose(got, want, rtol=2**-8)


@pytest.mark.parametrize(
  ("rows", "queries", "keys", "heads", "block"),
  [
    (1, 1024, 1024, 16, None),  # 64 MiB exactly
    (1, 1025, 1025, 16, 520),  # two blocks, the second of 505
    (1, 7168, 7168, 16, 144),
    (1, 7168, 7168, 64, 32),
    (24, 1024, 7168, 64, 8),
    (4096, 4096, 4096, 64, 8),
  ],
)
def test_blocks_are_as_large_as_the_limit_lets_them(rows, queries, keys, heads, block):
  shapes = [np.broadcast_to(np.int32(1), (rows, length)) for length in (queries, keys)]
  assert query_block(Bias(*shapes), heads) == block


def test_the_limit_is_for_one_device():
  """On eight, blocks are eight times as long."""
  bias = Bias(*[np.broadcast_to(np.int32(1), (8, 4096))] * 2)
  assert query_block(bias, 8) == 64
  mesh = Mesh(
    np.array(jax.devices()).reshape(4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2
  )
  with jax.set_mesh(mesh):
    assert query_block(bias, 8) == 512


def test_no_array_of_heads_queries_and_keys_is_held(monkeypatch):
  """By the compiler's own analysis of a forward and backward pass."""
  heads, length = 4, 512
  all_logits = 4 * heads * length**2
  inputs = {name: np.zeros((1, length, heads, 8), np.float32) for name in ("query", "key", "value")}
  inputs["table"] = np.zeros((heads, 32), np.float32)
  bias = Bias(*[np.ones((1, length), np.int32)] * 2)

  def held(mix):
    total = jax.grad(lambda inputs: jnp.sum(mixed(mix, inputs, bias, 0.1, KEY)))
    return jax.jit(total).lower(inputs).compile().memory_analysis().temp_size_in_bytes

  assert held(attention._mixed) > all_logits
  monkeypatch.setattr(attention, "LOGITS_BYTES", all_logits / 32)
  assert held(attention._mixed_by_blocks) < all_logits / 2


def test_devices_add_up_the_table_s_gradient_once(blocks_of_eight):
  """Not in each block, where it is as large as the block's logits."""
  inputs, bias = case("encoder", rows=8)
  mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
  rows, whole = (jax.NamedSharding(mesh, PartitionSpec(*spec)) for spec in (["data"], []))

  def of_table(table, inputs, bias):
    return jnp.sum(mixed(attention._mixed_by_blocks, {**inputs, "table": table}, bias))

  with jax.set_mesh(mesh), nn.logical_axis_rules([("batch", "data")]):
    lowered = jax.jit(
      jax.grad(of_table), in_shardings=(whole, rows, rows), out_shardings=whole
    ).lower(inputs.pop("table"), inputs, bias)
  collectives = totals(lowered.compile().as_text())
  assert set(collectives) == {"all-reduce"}
  assert collectives["all-reduce"].result_bytes == 4 * 2 * 32


@pytest.mark.parametrize("shared", [True, False])
def test_a_network_of_long_inputs_is_the_same_network(random_params, monkeypatch, shared):
  """All three attentions by blocks of eight; where each layer has its own bias, gradients too."""
  config = dataclasses.replace(CONFIG, shared_relpos_bias=shared)
  params = random_params(config)
  inputs, targets = segments(2, 27, 0), segments(2, 18, 1)
  ids = np.random.default_rng(2).integers(2, 16, (2, 45))

  def run():
    def total(params):
      network = functools.partial(Transformer(config).apply, {"params": params})
      logits = network(ids[:, :27], inputs, ids[:, 27:], targets)
      return jnp.sum(jnp.square(logits) * (targets > 0)[..., None]), logits

    if shared:
      return {}, jax.jit(total)(params)[1]
    return jax.jit(jax.grad(total, has_aux=True))(params)

  gradient, logits = run()
  visited = []
  monkeypatch.setattr(attention, "LOGITS_BYTES", 1)
  monkeypatch.setattr(attention, "_mixed", watched(attention._mixed, visited))
  by_blocks, same_logits = run()
  assert {query.shape[1] for query in visited} == {8}
  np.testing.assert_allclose(same_logits, logits, rtol=1e-4, atol=1e-5)
  for (path, got), want in zip(
    jax.tree_util.tree_leaves_with_path(by_blocks), jax.tree.leaves(gradient), strict=True
  ):
    assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want), jax.tree_util.keystr(path)


def watched(mix, queries):
  def watch(query, *arguments):
    queries.append(query)
    return mix(query, *arguments)

  return watch
