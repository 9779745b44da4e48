"""The programs of the slots: what they copy, and how a cache grows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.decoding.greedy import most_likely
from dss_jax.decoding.slots import advance, empty_slots, gathered, lengthened
from dss_jax.decoding.weights import decoding_weights
from tests.fixtures.networks import TINY

ROWS, CACHE, SOURCE = 3, 11, 13


def test_steps_copy_no_cache(random_params):
  """They are updated in place: no operation of a cache's size but those that write one token."""
  weights = decoding_weights(random_params(TINY), TINY)
  slots = empty_slots(TINY, ROWS, CACHE, SOURCE)
  program = functools.partial(advance, model=TINY, eos_id=1, steps=4)
  compiled = jax.jit(program, donate_argnums=1).lower(
    weights, slots, np.ones(ROWS, bool), np.int32(4), np.int32(9)
  )
  text = compiled.compile().as_text()
  for length in (CACHE, SOURCE):
    shape = f"f32[{ROWS},{TINY.num_heads},{length},{TINY.head_dim}]"
    assert shape in text
    lines = [line for line in text.splitlines() if f"= {shape}" in line]
    for operation in ("copy", "transpose", "select", "concatenate"):
      assert not [line for line in lines if f" {operation}(" in line]


def marked(step):
  """Slots whose caches hold, in each place, the number of the step that was written there."""
  slots = empty_slots(TINY, ROWS, 8, SOURCE)
  written = np.array([max(s for s in range(-8, step) if s % 8 == place) for place in range(8)])
  cache = jnp.broadcast_to(written[:, None].astype(np.float32), slots.caches[0][0].shape)
  caches = [(cache, cache)] * TINY.num_decoder_layers
  return slots.replace(step=jnp.array(step), caches=caches)


@pytest.mark.parametrize("step", [0, 5, 8, 13, 40])
def test_a_longer_ring_has_each_step_in_its_place(step):
  longer = lengthened(marked(step), cache_length=24, source_length=20)
  assert (longer.cache_length, longer.source_length) == (24, 20)
  cache = np.asarray(longer.caches[1][0])[0, 0, :, 0]
  for past in range(max(step - 8, 0), step):
    assert cache[past % 24] == past


def test_rows_move_with_all_that_is_theirs():
  slots = empty_slots(TINY, ROWS, CACHE, SOURCE).replace(
    live_B=jnp.array([True, False, True]), tokens_B=jnp.array([4, 5, 6])
  )
  moved = gathered(slots, np.array([2, 0]), np.array([True, False]))
  assert moved.live_B.tolist() == [True, False]
  assert moved.tokens_B.tolist() == [6, 4]
  assert moved.caches[0][0].shape[0] == moved.crosses[0][0].shape[0] == 2


@pytest.mark.parametrize("words", [1, 7, 24, 32])
def test_the_first_of_the_most_likely_tokens(words):
  logits = np.random.default_rng(0).integers(0, 4, (words, 50)).astype(np.float32)
  found = jax.jit(most_likely)(logits)
  np.testing.assert_array_equal(found, np.argmax(logits, axis=0))
