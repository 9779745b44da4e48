"""The student's Adafactor against T5X's, as T5X fine-tunes: weights and moments, step by step."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from dss_jax.config import OptimizerConfig
from dss_jax.train.optimizer import make_optimizer

WHY = "T5X is not installed (docs/t5x.md)"
pytestmark = pytest.mark.t5x
pytest.importorskip("t5x.models", reason=WHY, exc_type=ImportError)
train_state = pytest.importorskip("t5x.train_state")

UPDATES = 4


@pytest.fixture(scope="module")
def state(make_t5x_model, run_config):
  """T5X's state of a model most of whose matrices are factored, and others not.

  The factor rules come from the network's logical axes, as under T5X's trainer. Some weights
  are so small that the scale's floor of 1e-3 counts.
  """
  # Factored: both sides at least 128; wi and wo have one that is less, the bias two.
  sizes = dataclasses.replace(run_config.model, emb_dim=128, head_dim=40, mlp_dim=120)
  model = make_t5x_model(sizes=sizes)
  shapes = {"encoder_input_tokens": (1, 4), "decoder_input_tokens": (1, 4)}
  types = dict.fromkeys(shapes, np.int32)
  variables = model.get_initial_variables(jax.random.PRNGKey(0), shapes, types)
  made = train_state.FlaxOptimTrainState.create(model.optimizer_def, variables)
  generator = np.random.default_rng(0)

  def draw(leaf):
    return (generator.choice([1e-5, 1e-2, 1.0]) * generator.normal(size=leaf.shape)).astype("f")

  return made.replace_params(jax.tree.map(draw, made.params))


@pytest.fixture(scope="module")
def gradients(state):
  """A gradient for each update, its elements of sizes far apart, some of them zero."""
  generator = np.random.default_rng(1)

  def draw(leaf):
    noise = generator.normal(size=leaf.shape) * np.exp(3 * generator.normal(size=leaf.shape))
    return np.where(generator.random(leaf.shape) < 0.1, 0, 1e-3 * noise).astype(np.float32)

  return [jax.tree.map(draw, plain(state.params)) for _ in range(UPDATES)]


def plain(tree):
  """Nested dicts of numpy arrays, whatever T5X's mappings are."""
  return {
    name: plain(branch) if hasattr(branch, "items") else np.asarray(branch)
    for name, branch in tree.items()
  }


def moments_of(state):
  """{"v", "v_row", "v_col"} of the student's optimizer."""
  (factored,) = [
    leaf
    for leaf in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optax.FactoredState))
    if isinstance(leaf, optax.FactoredState)
  ]
  return factored


def test_weights_and_moments_are_t5xs(state, gradients):
  optimizer = make_optimizer(OptimizerConfig(clip_norm=None), 300)
  params = plain(state.params)
  opt_state = optimizer.init(params)
  theirs = state
  factored = 0
  for gradient in gradients:
    before = params
    theirs = theirs.apply_gradient(gradient, learning_rate=1e-3)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    params = jax.tree.map(np.asarray, optax.apply_updates(params, updates))
    moments = moments_of(opt_state)
    wanted, their_moments = plain(theirs.params), theirs.param_states
    for path, weight in jax.tree_util.tree_leaves_with_path(params):
      name = jax.tree_util.keystr(path)
      want, old = at(wanted, path), at(before, path)
      # Of the step, not of the weight, which hides a wrong step.
      step = np.abs(want - old).max()
      assert step > 0, name
      np.testing.assert_allclose(weight, want, rtol=1e-6, atol=1e-5 * step, err_msg=name)
      their_state = at(their_moments, path)
      for kind in ("v", "v_row", "v_col"):
        got, expected = at(getattr(moments, kind), path), getattr(their_state, kind)
        assert got.shape == expected.shape, (name, kind)
        np.testing.assert_allclose(got, expected, rtol=1e-5, err_msg=f"{name} {kind}")
      factored += their_state.v_row.size > 1
  assert 0 < factored < UPDATES * len(jax.tree.leaves(params))


def at(tree, path):
  for key in path:
    tree = tree[key.key]
  return tree
