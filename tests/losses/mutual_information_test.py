"""InfoNCE between labels and rationales, by hand."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.test_util import check_grads

from dss_jax.config.schema import LossConfig
from dss_jax.errors import UserError
from dss_jax.losses.kinds import training_objective
from dss_jax.losses.mutual_information import MutualInformationLoss, info_nce

ALL = np.ones(2, bool)


def test_by_hand():
  # Cosines [[1, 0], [0.6, 0.8]] at temperature 0.5.
  a = np.array([[2.0, 0.0], [0.6, 0.8]], np.float32)
  b = np.array([[5.0, 0.0], [0.0, 1.0]], np.float32)
  scores = np.array([[1.0, 0.0], [0.6, 0.8]]) / 0.5
  rows = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
  columns = np.exp(scores) / np.exp(scores).sum(axis=0, keepdims=True)
  by_hand = -0.5 * np.sum(np.log(np.diag(rows)) + np.log(np.diag(columns)))
  np.testing.assert_allclose(info_nce(a, b, ALL, 0.5), by_hand, rtol=1e-5)


def test_zero_for_one_pair_and_the_log_of_their_number_for_equal_ones():
  same = np.ones((4, 3), np.float32)
  alone = np.array([False, True, False, False])
  np.testing.assert_allclose(info_nce(same, same, alone, 0.1), 0.0, atol=1e-5)
  np.testing.assert_allclose(info_nce(same, same, np.ones(4, bool), 0.1), 4 * np.log(4), rtol=1e-5)


def test_numerical_gradient():
  rng = np.random.default_rng(0)
  a, b = (rng.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
  counted = np.array([True, True, False, True])
  loss = jax.jit(lambda a, b: info_nce(a, b, counted, 0.5))
  check_grads(loss, (a, b), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_examples_without_a_rationale_are_left_out():
  batch = {"decoder_sequence_ids": np.array([[1, 2, 3, 0], [5, 6, 0, 0]], np.int32)}
  assert float(MutualInformationLoss(0.1, 1, 3).denominator(batch)) == 2.0


def test_labels_alone_are_refused(make_config):
  loss = LossConfig(alpha=1.0, extra_terms={"mutual-information": 0.1})
  with pytest.raises(UserError, match="alpha 1 trains on labels alone"):
    training_objective(dataclasses.replace(make_config(), loss=loss))
