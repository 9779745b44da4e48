"""Greedy decoding over a cache against full forward passes repeated token by token."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from dss_jax.decoding.greedy import greedy
from dss_jax.model.t5 import Transformer
from tests.fixtures.networks import TINY

EOS_ID, PAD_ID = 1, 0
CONFIG = dataclasses.replace(TINY, num_decoder_layers=1)
TOKENS = 20
SEED = 18
INPUTS = np.array([[5, 6, 7, 8, 1, 0, 0], [9, 3, 1, 0, 0, 0, 0], [0] * 7, [4, 8, 2, 9, 9, 3, 1]])


@pytest.fixture(scope="module")
def params(random_params):
  """Weights whose answers are of different lengths, and not one word said again and again."""
  return random_params(CONFIG, seed=SEED, gain=2.0)


def decoded(params, inputs, max_decode_tokens, config=CONFIG, eos_id=EOS_ID, starts=None):
  decode = jax.jit(
    functools.partial(
      greedy, config=config, eos_id=eos_id, pad_id=PAD_ID, max_decode_tokens=max_decode_tokens
    )
  )
  return np.asarray(decode(params, encoder_input_tokens_BL=inputs, start_tokens_B=starts))


@pytest.fixture(scope="module")
def answers(params):
  return decoded(params, INPUTS, TOKENS)


def repeated(config, params, starts=(PAD_ID,) * 4):
  """The same without a cache: the whole network for every token."""
  segments = (INPUTS > 0).astype(np.int32)
  ones = np.ones((len(INPUTS), TOKENS), np.int32)
  forward = jax.jit(
    lambda decoder_inputs: Transformer(config).apply(
      {"params": params}, INPUTS, segments, decoder_inputs, ones
    )
  )
  written = np.zeros((len(INPUTS), TOKENS), np.int32)
  for step in range(TOKENS):
    decoder_inputs = np.concatenate([np.array(starts)[:, None], written[:, :-1]], 1)
    written[:, step] = np.argmax(np.asarray(forward(decoder_inputs))[:, step], axis=-1)
  return written


def until_end(row):
  """The row to its end-of-sequence token, padded."""
  ends = np.flatnonzero(row == EOS_ID)
  length = ends[0] + 1 if len(ends) else len(row)
  return np.concatenate([row[:length], np.full(len(row) - length, PAD_ID)])


def assert_same(answers, full):
  for row in (0, 1, 3):
    np.testing.assert_array_equal(answers[row], until_end(full[row]))


def test_each_row_starts_from_its_token(params, answers):
  """As the rationales of a shared encoder do: the same input, another start, another answer."""
  starts = np.array([EOS_ID, PAD_ID, EOS_ID, EOS_ID], np.int32)
  started = decoded(params, INPUTS, TOKENS, starts=starts)
  assert_same(started, repeated(CONFIG, params, starts))
  np.testing.assert_array_equal(started[1], answers[1])
  assert not np.array_equal(started[0], answers[0])


def test_the_cache_gives_what_full_forward_passes_give(params, answers):
  assert_same(answers, repeated(CONFIG, params))


def test_layers_with_position_biases_of_their_own_do_too(random_params):
  config = dataclasses.replace(CONFIG, shared_relpos_bias=False, num_decoder_layers=2)
  params = random_params(config, seed=22, gain=2.0)
  answers = decoded(params, INPUTS, TOKENS, config)
  assert min(len(set(answers[row])) for row in (0, 1, 3)) >= 8
  assert_same(answers, repeated(config, params))


def test_the_weights_put_the_cache_to_the_test(answers):
  """Else the tests here would pass with a cache that is wrong."""
  lengths = [(answers[row] != PAD_ID).sum() for row in (0, 1, 3)]
  assert min(lengths) < 10
  assert max(lengths) == TOKENS
  assert min(len(set(answers[row])) for row in (0, 1, 3)) >= 5


def test_what_follows_the_end_is_padding(answers):
  for row in answers:
    ends = np.flatnonzero(row == EOS_ID)
    if len(ends):
      assert np.all(row[ends[0] + 1 :] == PAD_ID)


def test_the_vocabulary_says_which_token_ends(params, answers):
  (row,) = [row for row in (0, 1, 3) if (answers[row] != PAD_ID).all()][:1]
  eos_id = int(answers[row][3])
  end = answers[row].tolist().index(eos_id)
  ended = decoded(params, INPUTS, TOKENS, eos_id=eos_id)[row]
  assert ended.tolist() == [*answers[row][: end + 1], *[PAD_ID] * (TOKENS - end - 1)]


def test_a_row_of_padding_says_nothing(answers):
  assert np.all(answers[2] == PAD_ID)


def test_fewer_tokens_are_a_beginning(params, answers):
  np.testing.assert_array_equal(decoded(params, INPUTS, 3), answers[:, :3])


def test_padding_of_the_input_changes_nothing(params, answers):
  wider = np.pad(INPUTS, [(0, 0), (0, 5)])
  np.testing.assert_array_equal(decoded(params, wider, TOKENS), answers)
