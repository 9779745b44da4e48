"""Training in bfloat16 with activations as large as T5 1.1's get."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import linen as nn

from dss_jax.config.schema import T5Config
from dss_jax.losses.kinds import make_objective
from dss_jax.model.t5 import EncoderLayer, Transformer, init_params
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.step import Trainer

MODEL = T5Config(
  emb_dim=32,
  num_heads=4,
  head_dim=4,
  mlp_dim=32,
  num_encoder_layers=1,
  num_decoder_layers=1,
  vocab_size=128,
  dropout_rate=0.0,
)
STEPS = 6
ROWS, INPUTS, TARGETS = 4, 24, 12
# What float16 cannot hold: there T5 1.1 gives no numbers at all.
FLOAT16_MOST = 65_504


@pytest.fixture(scope="module")
def batch():
  generator = np.random.default_rng(0)

  def segments(length):
    return np.sort(generator.integers(0, 3, (ROWS, length)), axis=1)[:, ::-1].astype(np.int32)

  encoder, decoder = segments(INPUTS), segments(TARGETS)
  ids = {
    name: generator.integers(2, 128, shape.shape).astype(np.int32)
    for name, shape in (("encoder_input", encoder), ("decoder_input", decoder), ("target", decoder))
  }
  return {
    "encoder_input_tokens": ids["encoder_input"],
    "encoder_segment_ids": encoder,
    "decoder_input_tokens": ids["decoder_input"],
    "decoder_target_tokens": ids["target"],
    "decoder_segment_ids": decoder,
    "decoder_loss_weights": (decoder > 0).astype(np.float32),
    "decoder_target_kinds": (decoder == 2).astype(np.int32),
  }


@pytest.fixture(scope="module")
def params():
  """Weights whose activations are as large as T5 1.1's, and larger."""
  boxed = jax.eval_shape(functools.partial(init_params, MODEL), jax.random.key(0))
  generator = np.random.default_rng(0)

  def draw(path, leaf):
    if leaf.ndim == 1:
      return np.ones(leaf.shape, np.float32)
    scale = {"embedding": 30.0, "rel_embedding": 1.0}.get(path[-1].key, leaf.shape[0] ** -0.5)
    scale *= 3e4 if path[-2].key == "wo" else 1.0
    scale *= MODEL.head_dim**-0.5 if path[-2].key == "query" else 1.0
    return scale * generator.normal(size=leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(boxed))


def losses_of(config, mesh, params, batch):
  """The losses of a few steps; each is a number, and so are the gradients."""
  trainer = Trainer(config, make_optimizer(config.optimizer, STEPS), mesh)
  state = trainer.state_from_params(jax.device_put(params, trainer.state_shardings.params))
  on_mesh = trainer.to_mesh(ROWS, lambda part: {k: v[part] for k, v in batch.items()})
  losses = []
  for _ in range(STEPS):
    state, metrics = trainer.train_step(state, on_mesh)
    losses.append(float(make_objective(config.loss).total(metrics["sums"])))
    assert np.isfinite([losses[-1], metrics["gradient_norm"]]).all()
  return losses


@pytest.mark.slow
def test_bfloat16_learns_what_float32_does(make_config, mesh_of, params, batch):
  """Losses within 1 % of each other at every step, where float16 would have overflown."""
  _, captured = Transformer(MODEL).apply(
    {"params": params},
    batch["encoder_input_tokens"],
    batch["encoder_segment_ids"],
    method=Transformer.encode,
    capture_intermediates=lambda module, _: isinstance(module, EncoderLayer),
    mutable=["intermediates"],
  )
  assert max(np.abs(stream).max() for stream in jax.tree.leaves(captured)) > FLOAT16_MOST
  losses, wanted = (
    losses_of(
      make_config(model={**dataclasses.asdict(MODEL), "dtype": dtype}), mesh_of(1, 1), params, batch
    )
    for dtype in ("bfloat16", "float32")
  )
  assert losses != wanted
  np.testing.assert_allclose(losses, wanted, rtol=0.01)
  assert losses[-1] < 0.98 * losses[0]
