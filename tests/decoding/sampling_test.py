"""Sampling against the softmax, and the sets of kept tokens against a hand calculation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dss_jax.config.schema import DecodingConfig
from dss_jax.decoding.sampling import Sampling, kept, log_probabilities, next_tokens

PROBABILITIES = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = np.log(PROBABILITIES)
DRAWS = 20_000


def drawn(config, logits=LOGITS, positions=0):
  """The number of each token in draws of as many rows."""
  rows = np.arange(DRAWS, dtype=np.uint32)
  identities = np.stack([rows, np.zeros_like(rows)], axis=1)
  logits_VB = jnp.broadcast_to(jnp.asarray(logits, jnp.float32)[:, None], (len(logits), DRAWS))
  positions_B = jnp.full(DRAWS, positions)
  sampling = Sampling.of([config] * DRAWS, DRAWS)
  tokens = jax.jit(lambda x: next_tokens(x, sampling, identities, positions_B))(logits_VB)
  return np.bincount(np.asarray(tokens), minlength=len(logits))


def assert_distribution(counts, probabilities):
  possible = probabilities > 0
  assert counts[~possible].sum() == 0
  expected = probabilities[possible] / probabilities.sum() * DRAWS
  assert scipy.stats.chisquare(counts[possible], expected).pvalue > 0.001


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_by_the_softmax(temperature):
  counts = drawn(DecodingConfig(temperature=temperature, seed=3))
  assert_distribution(counts, scipy.special.softmax(LOGITS / temperature))


def test_another_temperature_is_seen():
  """Else the test of the distribution would pass with any."""
  counts = drawn(DecodingConfig(temperature=1.0, seed=3))
  expected = scipy.special.softmax(LOGITS / 1.2) * DRAWS
  assert scipy.stats.chisquare(counts, expected).pvalue < 1e-6


def test_positions_and_seeds_draw_anew():
  counts = [
    drawn(DecodingConfig(temperature=1.0, seed=seed), positions=position)
    for seed, position in ((0, 0), (0, 1), (1, 0), (0, 0))
  ]
  assert counts[0].tolist() == counts[3].tolist()
  assert len({tuple(each) for each in counts}) == 3


def test_tokens_are_drawn_from_the_kept_ones():
  counts = drawn(DecodingConfig(temperature=1.0, top_k=3, top_p=0.8, seed=5))
  # The three likeliest are 0.4, 0.3 and 0.15: of 0.85, the first two are 0.82.
  assert_distribution(counts, np.array([0, 0.4, 0, 0.3, 0]))


@pytest.mark.parametrize(
  ("top_k", "top_p", "expected"),
  [
    (None, 1.0, {0, 1, 2, 3, 4}),
    (1, 1.0, {1}),
    (3, 1.0, {1, 3, 4}),
    (99, 1.0, {0, 1, 2, 3, 4}),
    (None, 0.1, {1}),
    (None, 0.39, {1}),
    (None, 0.41, {1, 3}),
    (None, 0.69, {1, 3}),
    (None, 0.71, {1, 3, 4}),
    (None, 0.96, {0, 1, 2, 3, 4}),
    # Of the two likeliest, the first is 0.4 / 0.7 = 0.57.
    (2, 0.56, {1}),
    (2, 0.58, {1, 3}),
  ],
)
def test_kept_tokens(top_k, top_p, expected):
  logits = jnp.asarray(LOGITS, jnp.float32)[None]
  found = np.asarray(kept(logits, jnp.array([top_k or 0]), jnp.array([top_p])))[0]
  assert set(np.flatnonzero(np.isfinite(found))) == expected
  np.testing.assert_array_equal(found[sorted(expected)], np.asarray(logits)[0, sorted(expected)])


def test_log_probabilities():
  logits_VB = jnp.asarray(np.stack([LOGITS + 3, LOGITS[::-1]], axis=1), jnp.float32)
  found = log_probabilities(logits_VB, jnp.array([1, 1]))
  np.testing.assert_allclose(np.exp(found), [0.4, 0.3], rtol=1e-5)
