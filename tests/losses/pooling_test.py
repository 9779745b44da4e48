"""Means of states over sequences: whichever rows they lie in, without padding."""

import numpy as np

from dss_jax.losses.pooling import pooled, present
from dss_jax.losses.signals import NetworkOutputs

IDS = np.array([[1, 1, 4, 0], [4, 4, 2, 0]], np.int32)
BATCH = {"encoder_sequence_ids": IDS}


def test_by_hand(make_config):
  # States of root mean square 1, which the norm leaves as they are.
  signs = np.array([[1.0, 1, -1, 1], [1, -1, -1, 1]], np.float32)
  states = np.stack([signs, -signs], axis=-1)
  scale = {"encoder_norm": {"scale": np.array([1.0, 2.0], np.float32)}}
  network = NetworkOutputs(None, None, {1: states}, {}, {"encoder": scale}, make_config().model)
  means = pooled(network, BATCH, "encoder", 1, examples=3)
  by_hand = np.array([[1, -2], [-1, 2], [0, 0], [-1 / 3, 2 / 3], [0, 0], [0, 0]])
  np.testing.assert_allclose(means, by_hand, rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(
    present(BATCH, "encoder", 3), [True, True, False, True, False, False]
  )
