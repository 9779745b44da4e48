"""Weights for the model's tests."""

import functools
import math

import jax
import msgpack
import numpy as np
import pytest
from flax import linen as nn

from dss_jax.config import T5Config
from dss_jax.errors import UserError
from dss_jax.model.stored_arrays import in_memory, model_shapes
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


@pytest.fixture(scope="session")
def small():
  """A model whose every dimension is another number, so that none is taken for another."""
  return T5Config(
    emb_dim=16,
    num_heads=8,
    head_dim=3,
    mlp_dim=40,
    num_encoder_layers=2,
    num_decoder_layers=1,
    vocab_size=56,
  )


@pytest.fixture
def arrays(small):
  """Weights of the small model by name, as they would be read from a disk."""
  generator = np.random.default_rng(0)
  return {
    name: in_memory(generator.normal(size=shape).astype(np.float32))
    for name, shape in model_shapes(small).items()
  }


@pytest.fixture(scope="session")
def refusal():
  """The sentence in which a reader refuses what it is given."""

  def refusal(read, *arguments):
    with pytest.raises(UserError) as caught:
      read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)

  return refusal


class Index:
  """The msgpack index of a native checkpoint, to look into and to change."""

  def tree(self, folder):
    return msgpack.unpackb((folder / "checkpoint").read_bytes(), raw=False)

  def change(self, folder, edit):
    """Rewrites the index after `edit` has changed it."""
    tree = self.tree(folder)
    edit(tree)
    (folder / "checkpoint").write_bytes(msgpack.packb(tree))

  def leaf(self, tree, name):
    """What stands in it for a weight."""
    target = tree["optimizer"]["target"]
    return functools.reduce(lambda node, key: node[key], name.split("."), target)


@pytest.fixture(scope="session")
def index():
  return Index()
