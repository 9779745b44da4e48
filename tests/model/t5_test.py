"""The network as a whole: names, masks, segments, dropout, dtypes, ties."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dss_jax.config.schema import T5Config
from dss_jax.model.t5 import Transformer, init_params, output_kernel

CONFIG = T5Config(
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  num_encoder_layers=1,
  num_decoder_layers=1,
  vocab_size=64,
  dropout_rate=0.1,
)


@pytest.fixture(scope="module")
def params(random_params):
  return random_params(CONFIG)


def compiled(config, params, batch, **options):
  """What the network gives, compiled anew at each call."""
  apply = jax.jit(functools.partial(Transformer(config).apply, **options))
  return np.asarray(apply({"params": params}, *batch))


@pytest.fixture(scope="module")
def logits(params):
  """Logits of a batch, compiled once."""
  apply = jax.jit(functools.partial(Transformer(CONFIG).apply, {"params": params}))
  return lambda batch: np.asarray(apply(*batch))


def packed_batch():
  """One row: inputs of 5 and 4 tokens, targets of 3 and 4, and a little padding."""
  rng = np.random.default_rng(0)
  encoder_segments = np.array([[1] * 5 + [2] * 4 + [0] * 3])
  decoder_segments = np.array([[1] * 3 + [2] * 4 + [0] * 1])
  inputs = rng.integers(2, 64, encoder_segments.shape) * (encoder_segments > 0)
  targets = rng.integers(2, 64, decoder_segments.shape) * (decoder_segments > 0)
  return [inputs, encoder_segments, targets, decoder_segments]


@pytest.mark.parametrize(("field", "place"), [(0, slice(5, 9)), (2, slice(3, 7))])
def test_changing_one_packed_sequence_leaves_the_other_as_it_is(logits, field, place):
  """Bit for bit, and the changed one does change."""
  batch = packed_batch()
  before = logits(batch)
  batch[field] = batch[field].copy()
  batch[field][0, place] = (batch[field][0, place] + 7) % 62 + 2
  after = logits(batch)
  np.testing.assert_array_equal(after[0, :3], before[0, :3])
  assert np.abs(after[0, 3:7] - before[0, 3:7]).max() > 0.1


def test_padding_is_not_attended(logits):
  batch = packed_batch()
  before = logits(batch)
  batch[0], batch[2] = batch[0].copy(), batch[2].copy()
  batch[0][0, 9:], batch[2][0, 7:] = 33, 44
  np.testing.assert_array_equal(logits(batch)[0, :7], before[0, :7])


def test_a_packed_sequence_is_what_it_is_alone(params, logits):
  batch = packed_batch()
  alone = [
    batch[0][:, 5:9], np.ones((1, 4), np.int32), batch[2][:, 3:7], np.ones((1, 4), np.int32)
  ]  # fmt: skip
  got = compiled(CONFIG, params, alone)
  np.testing.assert_allclose(got[0], logits(batch)[0, 3:7], atol=2e-5)


def test_a_target_does_not_see_what_follows_it(logits):
  batch = packed_batch()
  before = logits(batch)
  batch[2] = batch[2].copy()
  batch[2][0, 5] = batch[2][0, 5] % 62 + 2 + 1
  after = logits(batch)
  np.testing.assert_array_equal(after[0, :5], before[0, :5])
  assert np.abs(after[0, 5:7] - before[0, 5:7]).max() > 0.1


def test_parameter_names_shapes_and_logical_axes_are_t5x_s():
  boxed = jax.eval_shape(functools.partial(init_params, CONFIG), jax.random.key(0))
  got = {
    "/".join(key.key for key in path): (tuple(box.names), box.value.shape)
    for path, box in jax.tree_util.tree_leaves_with_path(
      boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )
  }
  norm = (("embed",), (16,))
  attention = {
    **{f"{name}/kernel": (("embed", "joined_kv"), (16, 16)) for name in ("query", "key", "value")},
    "out/kernel": (("joined_kv", "embed"), (16, 16)),
  }
  mlp = {
    "wi_0/kernel": (("embed", "mlp"), (16, 32)),
    "wi_1/kernel": (("embed", "mlp"), (16, 32)),
    "wo/kernel": (("mlp", "embed"), (32, 16)),
  }
  bias = {"relpos_bias/rel_embedding": (("heads", "relpos_buckets"), (2, 32))}

  def under(prefix, entries):
    return {f"{prefix}/{name}": entry for name, entry in entries.items()}

  encoder_layer = {
    "pre_attention_layer_norm/scale": norm,
    "pre_mlp_layer_norm/scale": norm,
    **under("attention", attention),
    **under("mlp", mlp),
  }
  decoder_layer = {
    "pre_self_attention_layer_norm/scale": norm,
    "pre_cross_attention_layer_norm/scale": norm,
    "pre_mlp_layer_norm/scale": norm,
    **under("self_attention", attention),
    **under("encoder_decoder_attention", attention),
    **under("mlp", mlp),
  }
  assert got == {
    "token_embedder/embedding": (("vocab", "embed"), (64, 16)),
    **under("encoder", {**under("layers_0", encoder_layer), **bias, "encoder_norm/scale": norm}),
    **under(
      "decoder",
      {
        **under("layers_0", decoder_layer),
        **bias,
        "decoder_norm/scale": norm,
        "logits_dense/kernel": (("embed", "vocab"), (16, 64)),
      },
    ),
  }


def test_tied_logits_are_the_embedding_s_and_scaled(random_params):
  tied = dataclasses.replace(CONFIG, logits_via_embedding=True)
  params, batch = random_params(tied), packed_batch()
  assert "logits_dense" not in params["decoder"]
  embedding = params["token_embedder"]["embedding"]
  untied = {**params, "decoder": {**params["decoder"], "logits_dense": {"kernel": embedding.T}}}
  want = compiled(CONFIG, untied, batch) / 4.0  # sqrt(16)
  np.testing.assert_allclose(compiled(tied, params, batch), want, rtol=1e-4, atol=1e-5)
  hidden = compiled(tied, params, batch, method=Transformer.hidden)
  kernel = output_kernel(params, tied)
  np.testing.assert_allclose(hidden @ kernel, want, rtol=1e-4, atol=1e-5)


def test_the_output_kernel_turns_hidden_states_into_the_logits(params, logits):
  hidden = compiled(CONFIG, params, packed_batch(), method=Transformer.hidden)
  kernel = output_kernel(params, CONFIG)
  assert kernel.shape == (16, 64)
  np.testing.assert_allclose(hidden @ kernel, logits(packed_batch()), rtol=1e-4, atol=1e-5)


def test_dropout_changes_the_outcome_and_is_off_when_deterministic(params, logits):
  batch = packed_batch()

  @jax.jit
  def dropped(seed):
    rngs = {"dropout": jax.random.key(seed)}
    return Transformer(CONFIG).apply({"params": params}, *batch, deterministic=False, rngs=rngs)

  clean = logits(batch)  # of a config whose rate is not 0
  assert np.abs(dropped(0) - clean).max() > 0.01
  assert np.abs(dropped(0) - dropped(1)).max() > 0.01
  np.testing.assert_array_equal(dropped(0), dropped(0))
  none = dataclasses.replace(CONFIG, dropout_rate=0.0)
  got = compiled(none, params, batch, deterministic=False)
  np.testing.assert_allclose(got, clean, atol=1e-5)


def test_bfloat16_activations_float32_weights_and_logits(params, logits):
  config = dataclasses.replace(CONFIG, dtype="bfloat16")
  shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
  batch = packed_batch()
  got = compiled(config, params, batch)
  hidden = jax.eval_shape(
    functools.partial(Transformer(config).apply, method=Transformer.hidden),
    {"params": params},
    *batch,
  )
  assert hidden.dtype == jnp.bfloat16
  assert got.dtype == jnp.float32
  assert np.all(np.isfinite(got))
  np.testing.assert_allclose(got, logits(batch), atol=0.2)
  assert np.abs(got - logits(batch)).max() > 1e-4


def test_a_row_of_padding_only_gives_finite_numbers(logits):
  zeros = [np.zeros_like(each) for each in packed_batch()]
  assert np.all(np.isfinite(logits(zeros)))


def test_fresh_weights_are_a_function_of_the_key():
  init = jax.jit(functools.partial(init_params, CONFIG))
  first, again, other = (nn.meta.unbox(init(jax.random.key(seed))) for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  for path, leaf in jax.tree_util.tree_leaves_with_path(first):
    if leaf.ndim == 1:
      np.testing.assert_array_equal(leaf, 1.0)
    else:
      there = functools.reduce(lambda tree, key: tree[key.key], path, other)
      assert np.abs(there - leaf).max() > 0.1, path
