"""A teacher's next tokens at each target position of a batch, few enough to be kept."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dss_jax.data.batches import TargetFeature
from dss_jax.losses.cross_entropy import CHUNK_BYTES
from dss_jax.losses.signals import DenseLogits
from dss_jax.parallel.sharding import logical_rules
from dss_jax.train.teacher_network import TeacherNetwork

# Words are drawn in two stages: one of the blocks, and one of its words. Float32 cannot resolve
# a word's share of a sum over the whole vocabulary; a block's share of it, and a word's of its
# block, it can.
_BLOCK = 128

# (log probabilities [R, m, V], the batch's arrays of the chunk) -> arrays [R, m, ...].
Reduce = Callable[[jax.Array, Mapping[str, jax.Array]], tuple[jax.Array, ...]]


def numbers_of(target_lengths: np.ndarray) -> tuple[TargetFeature, ...]:
  """Returns the features of a batch that `draws` needs: each position's example and place."""

  def examples(example: int, kind: int) -> np.ndarray:
    return np.full(target_lengths[example, kind], example)

  def places(example: int, kind: int) -> np.ndarray:
    return np.arange(target_lengths[example, kind])

  number = np.dtype(np.int32)
  return (
    TargetFeature("target_examples", (), number, examples),
    TargetFeature("target_places", (), number, places),
  )


class NextTokenFunction:
  """The compiled function of a teacher on its mesh: a batch's next tokens, reduced."""

  def __init__(self, teacher: TeacherNetwork, reduce: Reduce, *, words: int, temperature: float):
    """Makes the function.

    Args:
      reduce: keeps of each distribution what is needed.
      words: the number of words that the distribution is over; further embedding rows are padding.
      temperature: the logits are divided by it.
    """
    self.mesh = teacher.mesh
    self._teacher = teacher
    self._reduce = reduce
    self._words = words
    self._temperature = temperature
    self._function = jax.jit(self._of_batch)

  def __call__(self, batch: Mapping[str, jax.Array]) -> tuple[np.ndarray, ...]:
    """Returns what the reduction gives, [R, M, ...], on the host."""
    rules = logical_rules(self._teacher.config, self._teacher.mesh, split_length=True)
    with jax.set_mesh(self._teacher.mesh), nn.logical_axis_rules(rules):
      return jax.device_get(self._function(self._teacher.params, batch))

  def _of_batch(self, params: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
    layers: dict[str, tuple[int, ...]] = {"encoder": (), "decoder": ()}
    outputs = self._teacher.outputs(params, batch, layers)
    rows, length = batch["decoder_target_tokens"].shape
    bytes_a_position = 4 * rows * self._words / self._teacher.mesh.size
    chunks = min(max(math.ceil(length * bytes_a_position / CHUNK_BYTES), 1), length)
    size = math.ceil(length / chunks)
    by_position = {name: x for name, x in batch.items() if name.startswith(("decoder_", "target_"))}

    def visit(chunk):
      hidden, arrays = chunk
      logits = DenseLogits(hidden, outputs.kernel_DV).logits(self._words)
      return self._reduce(jax.nn.log_softmax(logits / self._temperature), arrays)

    def split(x):
      padding = -length % size
      x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
      return jnp.moveaxis(x.reshape(rows, -1, size, *x.shape[2:]), 1, 0)

    def joined(x):
      return jnp.moveaxis(x, 0, 1).reshape(rows, -1, *x.shape[3:])[:, :length]

    chunked = jax.tree.map(split, (outputs.hidden_RMD, by_position))
    return jax.tree.map(joined, jax.lax.map(visit, chunked))


def likeliest(count: int) -> Reduce:
  """Returns the reduction to the ids and log probabilities of the likeliest words."""

  def reduce(log_probabilities, arrays):
    del arrays
    values, ids = jax.lax.top_k(log_probabilities, count)
    return ids, values

  return reduce


def draws(count: int, seed: int) -> Reduce:
  """Returns the reduction to the ids of words that are drawn with replacement, and the entropy.

  The draws of a position depend on the seed, its example, its kind and its place in the target.
  The batch needs the features of numbers_of.
  """
  root = jax.random.key(seed)

  @functools.partial(jnp.vectorize, signature="(),(),(),(v)->(k)")
  def drawn(example, kind, place, probabilities):
    key = root
    for number in (example, kind, place):
      key = jax.random.fold_in(key, number)
    return draw(key, probabilities, count)

  def reduce(log_probabilities, arrays):
    probabilities = jnp.exp(log_probabilities)
    # A word of probability 0 has log probability -inf.
    terms = jnp.where(probabilities > 0, probabilities * log_probabilities, 0.0)
    ids = drawn(
      arrays["target_examples"],
      arrays["decoder_target_kinds"],
      arrays["target_places"],
      probabilities,
    )
    return ids, -jnp.sum(terms, axis=-1)

  return reduce


def draw(key: jax.Array, probabilities_V: jax.Array, count: int) -> jax.Array:
  """Draws words with replacement; returns their ids, int32 [count]."""
  padded = jnp.pad(probabilities_V, (0, -len(probabilities_V) % _BLOCK))
  blocks = padded.reshape(-1, _BLOCK)
  of_block, of_word = jax.random.uniform(key, (2, count))
  block = _inverse(jnp.sum(blocks, axis=-1), of_block)
  word = _inverse(blocks[block], of_word)
  return block * _BLOCK + word


def _inverse(weights: jax.Array, uniform: jax.Array) -> jax.Array:
  """Returns where the sums of weights [..., n] first exceed the shares of their total, [count]."""
  # Sums that are made in parallel need not rise with every word.
  sums = jax.lax.cummax(jnp.cumsum(weights, axis=-1), axis=weights.ndim - 1)
  # Rounding must not reach the total: no word there has a probability.
  level = jnp.minimum(uniform * sums[..., -1], jnp.nextafter(sums[..., -1], 0.0))
  return jnp.sum(sums <= level[:, None], axis=-1, dtype=jnp.int32)
