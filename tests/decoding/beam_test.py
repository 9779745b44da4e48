"""Beam search against T5X's, and against a search of every sequence."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from dss_jax.checkpoints.arrays import architecture, shapes_of
from dss_jax.checkpoints.t5x_read import read_t5x
from dss_jax.decoding.beam import beam_search, length_penalty
from dss_jax.model.t5 import Transformer
from tests.fixtures.networks import TINY

EOS_ID, PAD_ID = 1, 0
CONFIG = dataclasses.replace(TINY, vocab_size=6)
INPUTS = np.array([[5, 4, 3, 1], [2, 3, 1, 0], [0, 0, 0, 0]], np.int32)
TOKENS = 4


@pytest.fixture(scope="module")
def params(random_params):
  return random_params(CONFIG, seed=5, gain=1.5)


def searched(params, config, inputs, eos_id=EOS_ID, **options):
  search = jax.jit(
    functools.partial(beam_search, config=config, eos_id=eos_id, pad_id=PAD_ID, **options)
  )
  ids, scores = search(params, encoder_input_tokens_BL=inputs)
  return np.asarray(ids), np.asarray(scores)


def test_ids_and_scores_are_t5x_s(shared, as_tree):
  stored = read_t5x(shared / "checkpoints/t5x_native_tiny")
  golden = np.load(shared / "checkpoints/t5x_native_tiny.decode.npz")
  want = golden["beam4"]
  ids, scores = searched(
    as_tree(stored),
    architecture(shapes_of(stored), ""),
    golden["encoder_input_tokens"],
    max_decode_tokens=want.shape[-1],
  )
  # T5X gives the best last.
  np.testing.assert_array_equal(ids[:, ::-1], want)
  np.testing.assert_allclose(scores[:, ::-1], golden["beam4_scores"], atol=1e-4, rtol=0)


def all_sequences(params):
  """Every sequence that ends within TOKENS, with its score in each of the first two rows."""
  scored = []
  words = [token for token in range(CONFIG.vocab_size) if token != EOS_ID]
  model = Transformer(CONFIG)
  segments = (INPUTS[:2] > 0).astype(np.int32)

  @jax.jit
  def log_probabilities(shifted):
    inputs = np.repeat(INPUTS[:2], len(shifted), axis=0)
    twice = np.repeat(segments, len(shifted), axis=0)
    shifted = jax.numpy.tile(shifted, (2, 1))
    logits = model.apply({"params": params}, inputs, twice, shifted, jax.numpy.ones_like(shifted))
    return jax.nn.log_softmax(logits).reshape(2, -1, TOKENS, CONFIG.vocab_size)

  sequences = [
    (*beginning, EOS_ID, *[0] * (TOKENS - length))
    for length in range(1, TOKENS + 1)
    for beginning in itertools.product(words, repeat=length - 1)
  ]
  ids = np.array(sequences)
  shifted = np.pad(ids, [(0, 0), (1, 0)])[:, :-1]
  logs = np.asarray(log_probabilities(shifted))
  lengths = np.argmax(ids == EOS_ID, axis=1) + 1
  for row in range(2):
    taken = np.take_along_axis(logs[row], ids[:, :, None], axis=2)[:, :, 0]
    sums = np.where(np.arange(TOKENS) < lengths[:, None], taken, 0).sum(1)
    scored.append(sums / np.asarray(length_penalty(lengths, 0.6)))
  return ids, np.array(scored)


def test_a_wide_search_finds_the_best_of_all(params):
  """With as many beams as there are beginnings, nothing is dropped too early."""
  ids, scores = all_sequences(params)
  beams = 5**3
  found, best = searched(params, CONFIG, INPUTS, max_decode_tokens=TOKENS, beams=beams)
  for row in range(2):
    order = np.argsort(-scores[row])[:20]
    np.testing.assert_allclose(best[row, :20], scores[row][order], atol=1e-4)
    np.testing.assert_array_equal(found[row, :20], ids[order])


@pytest.mark.parametrize("eos_id", [EOS_ID, 3])
def test_scores_fall_and_no_sequence_comes_twice(params, eos_id):
  found, best = searched(params, CONFIG, INPUTS, max_decode_tokens=TOKENS, beams=3, eos_id=eos_id)
  for row in range(2):
    assert np.all(np.diff(best[row]) <= 0)
    ended = found[row][best[row] > -1e6]
    assert len(ended) == len({tuple(ids) for ids in ended}) >= 1
    assert np.all((ended == eos_id).sum(1) == 1)


def test_a_row_of_padding_says_nothing(params):
  found, _ = searched(params, CONFIG, INPUTS, max_decode_tokens=TOKENS, beams=3)
  assert np.all(found[2] == 0)


def test_length_penalty():
  assert length_penalty(1, 0.6) == 1
  assert float(length_penalty(7, 0.6)) == pytest.approx(2**0.6)
