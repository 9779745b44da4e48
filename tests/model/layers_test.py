"""T5's layers against numbers worked out by hand and plain numpy."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dss_jax.config import T5Config
from dss_jax.model.layers import (
  Attention,
  Dense,
  Dropout,
  MlpBlock,
  RelativePositionBias,
  RMSNorm,
  relative_position_bucket,
)

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


def test_relative_position_bias_looks_up_each_heads_bucket():
  table = normal(2, 32)
  bias = RelativePositionBias(2, bidirectional=True).apply(
    {"params": {"rel_embedding": table}}, np.arange(3), np.arange(4)
  )
  assert bias.shape == (1, 2, 3, 4)
  np.testing.assert_array_equal(bias[0, :, 0, 2], table[:, 18])  # the key is 2 to the right
  np.testing.assert_array_equal(bias[0, :, 2, 0], table[:, 2])
  np.testing.assert_array_equal(bias[0, :, 1, 1], table[:, 0])


def test_rms_norm_by_hand():
  x = np.array([[3.0, 4.0]], np.float32)  # mean of squares 12.5
  got = RMSNorm("float32").apply({"params": {"scale": np.array([1.0, 2.0])}}, x)
  np.testing.assert_allclose(got, [[3 / math.sqrt(12.5), 8 / math.sqrt(12.5)]], rtol=1e-6)


def test_rms_norm_of_bfloat16_is_worked_out_in_float32():
  """Rounded once, at the end."""
  x, scale = jnp.asarray(normal(3, 64), jnp.bfloat16), normal(64, seed=1)
  got = RMSNorm("bfloat16").apply({"params": {"scale": scale}}, x)
  wide = np.asarray(x, np.float32)
  want = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-6) * scale
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


def test_rms_norm_of_zeros_is_zero():
  got = RMSNorm("float32").apply({"params": {"scale": np.ones(4)}}, np.zeros((1, 4), np.float32))
  assert np.all(got == 0)


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


def test_gated_mlp_by_plain_numpy():
  x, wi_0, wi_1, wo = normal(2, 3, 6), normal(6, 5), normal(6, 5, seed=1), normal(5, 6, seed=2)
  params = {"wi_0": {"kernel": wi_0}, "wi_1": {"kernel": wi_1}, "wo": {"kernel": wo}}
  got = jax.jit(functools.partial(MlpBlock(CONFIG).apply, deterministic=True))(
    {"params": params}, x
  )
  a = x @ wi_0
  gelu = 0.5 * a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
  np.testing.assert_allclose(got, (gelu * (x @ wi_1)) @ wo, rtol=1e-4, atol=1e-5)


def test_relu_mlp_by_plain_numpy():
  config = dataclasses.replace(CONFIG, mlp_activations=("relu",))
  x, wi, wo = normal(2, 3, 6), normal(6, 5), normal(5, 6, seed=2)
  params = {"wi": {"kernel": wi}, "wo": {"kernel": wo}}
  got = jax.jit(functools.partial(MlpBlock(config).apply, deterministic=True))(
    {"params": params}, x
  )
  np.testing.assert_allclose(got, np.maximum(x @ wi, 0) @ wo, rtol=1e-4, atol=1e-5)


def test_dropout_zeroes_its_share_and_scales_the_rest():
  x = np.ones((400, 500), np.float32)
  got = np.asarray(Dropout(0.1).apply({}, x, False, rngs={"dropout": KEY}))
  dropped = got == 0
  # Of 200,000 draws the share is within four standard deviations of the rate.
  assert abs(dropped.mean() - 0.1) < 4 * math.sqrt(0.1 * 0.9 / x.size)
  np.testing.assert_allclose(got[~dropped], 1 / 0.9, rtol=1e-6)
  # Neither whole rows nor whole columns go together.
  assert abs(dropped.mean(axis=0) - 0.1).max() < 0.1
  assert abs(dropped.mean(axis=1) - 0.1).max() < 0.1


def test_dropout_is_off_when_deterministic_or_at_rate_0():
  x = normal(4, 5)
  np.testing.assert_array_equal(Dropout(0.5).apply({}, x, True), x)
  np.testing.assert_array_equal(Dropout(0.0).apply({}, x, False), x)


def test_dropout_follows_its_key_and_keeps_the_dtype():
  x = jnp.ones((64, 64), jnp.bfloat16)
  first, again, other = (
    Dropout(0.5).apply({}, x, False, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)
  )
  assert first.dtype == jnp.bfloat16
  assert jnp.array_equal(first, again)
  assert not jnp.array_equal(first, other)


def test_dense_multiplies_in_its_dtype_and_keeps_float32_weights():
  module = Dense(3, ("embed", "mlp"), "bfloat16")
  variables = nn.meta.unbox(module.init(KEY, np.ones((2, 4), np.float32)))
  assert variables["params"]["kernel"].dtype == jnp.float32
  assert variables["params"]["kernel"].shape == (4, 3)
  assert module.apply(variables, np.ones((2, 4), np.float32)).dtype == jnp.bfloat16


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
  mlp = jax.jit(functools.partial(MlpBlock(config).init, deterministic=True))(KEY, x)["params"]
  assert np.std(mlp["wi_0"]["kernel"].value) == pytest.approx(1 / math.sqrt(256), rel=0.02)
  assert np.std(mlp["wo"]["kernel"].value) == pytest.approx(1 / math.sqrt(1024), rel=0.02)
