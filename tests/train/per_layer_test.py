"""Optimizers over scanned layers: the update that unrolled ones get."""

import jax
import numpy as np
import optax
import pytest

from dss_jax.config.schema import OptimizerConfig
from dss_jax.model.layer_stacks import stacked_params
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.per_layer import per_layer


def updates(optimizer, params, *gradients):
  """The last of the updates, and the state after it."""

  @jax.jit
  def run(params, gradients):
    state = optimizer.init(params)
    for gradient in gradients:
      update, state = optimizer.update(gradient, state, params)
    return update, state

  return run(params, gradients)


@pytest.mark.parametrize(
  "config", [{}, {"weight_decay": 0.1, "clip_norm": None}, {"name": "adamw"}], ids=str
)
def test_the_update_is_that_of_the_unrolled_layers(config, drawn_weights):
  """The second of two, by Adafactor and AdamW, clipped, and decayed."""
  trees = [drawn_weights(seed) for seed in range(3)]
  optimizer = make_optimizer(OptimizerConfig(**config), 300)
  want = stacked_params(updates(optimizer, *trees)[0])
  got, _ = updates(optimizer, *map(stacked_params, trees))
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for (path, ours), theirs in zip(
    jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
  ):
    # Layer by layer, since a large one would hide what a small one lacks.
    layers = ours.shape[0] if path[1].key == "layers" else 1
    for one, other in zip(ours.reshape(layers, -1), theirs.reshape(layers, -1), strict=True):
      error = np.linalg.norm(one - other)
      assert error <= 1e-6 * np.linalg.norm(other), jax.tree_util.keystr(path)


def test_adafactor_alone_takes_a_stack_for_one_weight(drawn_weights):
  """Else the test above would pass without per_layer."""
  params, gradient = stacked_params(drawn_weights(0)), stacked_params(drawn_weights(1))
  got, _ = updates(per_layer(optax.adafactor(1e-3)), params, gradient)
  alone, _ = updates(optax.adafactor(1e-3), params, gradient)
  ours, theirs = (each["encoder"]["layers"]["mlp"]["wo"]["kernel"] for each in (got, alone))
  assert np.linalg.norm(ours - theirs) > 0.1 * np.linalg.norm(theirs)


def test_unrolled_layers_get_the_rule_as_it_is(drawn_weights):
  params, gradient = drawn_weights(0), drawn_weights(1)
  got, state = updates(per_layer(optax.adafactor(1e-3)), params, gradient)
  want, bare = updates(optax.adafactor(1e-3), params, gradient)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert jax.tree.structure(state) == jax.tree.structure(bare)
