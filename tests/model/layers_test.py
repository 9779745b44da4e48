"""T5's layers against numbers worked out by hand and plain numpy."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dss_jax.config.schema import T5Config
from dss_jax.model.layers import Dense, MlpBlock, RMSNorm, product

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


def test_dense_multiplies_in_its_dtype_and_keeps_float32_weights():
  module = Dense(3, ("embed", "mlp"), "bfloat16")
  variables = nn.meta.unbox(module.init(KEY, np.ones((2, 4), np.float32)))
  assert variables["params"]["kernel"].dtype == jnp.float32
  assert variables["params"]["kernel"].shape == (4, 3)
  assert module.apply(variables, np.ones((2, 4), np.float32)).dtype == jnp.bfloat16


def test_fresh_weights_have_t5x_s_spread():
  config = dataclasses.replace(CONFIG, emb_dim=256, mlp_dim=1024)
  x = np.zeros((1, 1, 256), np.float32)
  mlp = jax.jit(functools.partial(MlpBlock(config).init, deterministic=True))(KEY, x)["params"]
  assert np.std(mlp["wi_0"]["kernel"].value) == pytest.approx(1 / math.sqrt(256), rel=0.02)
  assert np.std(mlp["wo"]["kernel"].value) == pytest.approx(1 / math.sqrt(1024), rel=0.02)


@pytest.mark.parametrize(("width", "features"), [(3, 5), (5, 3)])
def test_the_gradients_of_a_product(width, features):
  x, kernel, weight = normal(2, 4, width), normal(width, features), normal(2, 4, features)

  def loss(multiply):
    return lambda x, kernel: (multiply(x, kernel) * weight).sum()

  ours = jax.value_and_grad(loss(product), argnums=(0, 1))(x, kernel)
  theirs = jax.value_and_grad(loss(jnp.dot), argnums=(0, 1))(x, kernel)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), ours, theirs)
