"""Weights for the model's tests."""

import functools
import math

import jax
import numpy as np
import pytest
from flax import linen as nn

from dss_jax.model.t5 import init_params


@pytest.fixture(scope="session", autouse=True)
def quickly(compile_quickly):
  """Every test here compiles something."""


@pytest.fixture(scope="session")
def random_params():
  """Weights of a config's names and shapes, drawn by numpy: nothing to compile."""

  def random_params(config, *, seed=0, gain=1.0):
    boxed = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
      noise = generator.normal(size=leaf.shape).astype(np.float32)
      if leaf.ndim == 1:
        return 1 + 0.1 * noise
      if path[-1].key in ("embedding", "rel_embedding"):
        return noise
      return noise * np.float32(gain / math.sqrt(leaf.shape[0]))

    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(boxed))

  return random_params


@pytest.fixture(scope="session")
def as_tree():
  """Stored arrays by name, read whole, as the tree of weights that the network takes."""

  def as_tree(arrays):
    tree = {}
    for name, array in arrays.items():
      *parents, leaf = name.split(".")
      branch = functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)
      branch[leaf] = array.whole().astype(np.float32)
    return tree

  return as_tree
