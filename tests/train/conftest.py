"""A tiny run and a store in memory, for the trainer's tests."""

import dataclasses

import numpy as np
import pytest

from dss_jax.config import DataConfig, MeshConfig, RunConfig, T5Config
from dss_jax.train.mesh import make_mesh

# Small, and its heads, width and words divide over a model axis of 4.
MODEL = T5Config(
  emb_dim=16,
  num_heads=4,
  head_dim=4,
  mlp_dim=32,
  num_encoder_layers=1,
  num_decoder_layers=1,
  vocab_size=128,
  dropout_rate=0.0,
)


@pytest.fixture(scope="session", autouse=True)
def quickly(compile_quickly):
  """Every test here compiles something."""


@dataclasses.dataclass
class Pairs:
  """A store in memory: of each example and task an (input, target) pair, or None."""

  pairs: list

  def _lengths(self, side):
    return np.array(
      [[0 if pair is None else len(pair[side]) for pair in row] for row in self.pairs]
    )

  @property
  def input_lengths(self):
    return self._lengths(0)

  @property
  def target_lengths(self):
    return self._lengths(1)

  def input_tokens(self, example, task):
    return self.pairs[example][task][0]

  def target_tokens(self, example, task):
    return self.pairs[example][task][1]


@pytest.fixture(scope="session")
def make_config():
  """A run's configuration; `model` replaces fields of the architecture."""

  def make_config(model_dir="unused", *, model=None, **changes):
    return RunConfig(
      model_dir=str(model_dir),
      student="tiny",
      model=dataclasses.replace(MODEL, **(model or {})),
      data=DataConfig(dataset="unused"),
      **changes,
    )

  return make_config


@pytest.fixture(scope="session")
def make_store():
  """Examples of random tokens; of `ragged` ones, every third lacks its rationale.

  Those that are not ragged have one length each, so that batches have one shape to compile.
  """

  def make_store(examples, *, seed=0, ragged=True, longest_input=20, longest_rationale=16):
    rng = np.random.default_rng(seed)

    def pair(longest_target):
      lengths = longest_input, longest_target
      if ragged:
        lengths = rng.integers(5, longest_input + 1), rng.integers(2, longest_target + 1)
      return tuple(rng.integers(2, 128, length).astype(np.int32) for length in lengths)

    return Pairs(
      [
        [pair(4), None if ragged and number % 3 == 0 else pair(longest_rationale)]
        for number in range(examples)
      ]
    )

  return make_store


@pytest.fixture(scope="session")
def mesh_of():
  """The mesh of so many devices along data and model."""
  return lambda data, model: make_mesh(MeshConfig(data=data, model=model), batch_size=data)


@pytest.fixture(scope="session")
def row_costs():
  """Dear attention, so that rows are short and quickly gone through."""

  def row_costs(rows, inputs, targets):
    return rows * (inputs + 2 * targets + 0.02 * (inputs**2 + targets**2 + inputs * targets))

  return row_costs


@pytest.fixture(scope="session")
def drawn_weights():
  """Makes the weights of an unrolled network from a seed."""

  def drawn_weights(seed):
    """Unrolled weights, some wide enough to be factored, whose layers differ greatly in size."""
    generator = np.random.default_rng(seed)

    def weight(*shape):
      return (10.0 ** generator.uniform(-2, 1) * generator.normal(size=shape)).astype(np.float32)

    def layers(count):
      return {
        f"layers_{number}": {
          "mlp": {"wo": {"kernel": weight(144, 128)}},
          "pre_mlp_layer_norm": {"scale": weight(128)},
          "relpos_bias": {"rel_embedding": weight(2, 32)},
        }
        for number in range(count)
      }

    return {
      "token_embedder": {"embedding": weight(160, 128)},
      "encoder": {**layers(3), "encoder_norm": {"scale": weight(128)}},
      "decoder": {**layers(2), "decoder_norm": {"scale": weight(128)}},
    }

  return drawn_weights
