"""The warning about terms that are a thousand times smaller than the largest."""

import re

import numpy as np
import pytest

from dss_jax.losses.base import LossSum, Term
from dss_jax.losses.kinds import KINDS, kind_of
from dss_jax.losses.objective import Objective
from dss_jax.train.term_balance import TermBalance, imbalance


def sums(**means):
  return {
    f"{name}/loss": LossSum(np.float32(mean * 4), np.float32(4)) for name, mean in means.items()
  }


@pytest.fixture
def balance():
  terms = (("label", 0.5), ("response_label", 1e-4), ("entropy", -0.01), ("unused", 0.0))
  return TermBalance(Objective(tuple(Term(name, weight, (0,)) for name, weight in terms)))


def test_it_is_said_once_and_of_the_mean_so_far(balance):
  balance.add(sums(label=2.0, response_label=1.0, entropy=3.0, unused=1.0))
  balance.add(sums(label=4.0, response_label=2.0, entropy=3.0, unused=1.0))
  # 0.5 * 3 against 1e-4 * 1.5, and 0.01 * 3 which is not small.
  assert balance.warning() == (
    "the part of the loss of label is 1.5, and that of response_label is 10,000 times smaller, so "
    "it teaches next to nothing; raise --kind-weight response=X"
  )
  balance.add(sums(label=2.0, response_label=1.0, entropy=3.0, unused=1.0))
  assert balance.warning() is None


def test_gradients_are_compared_where_they_are_known(balance):
  balance.add(sums(label=2.0, response_label=1.0, entropy=3.0, unused=1.0))
  assert balance.warning({"label": 1.0, "response_label": 0.002}) is None


def test_nothing_before_the_first_step(balance):
  assert balance.warning() is None


def test_a_term_without_targets_is_no_small_one(balance):
  given = sums(label=2.0, entropy=3.0, unused=1.0)
  balance.add({**given, "response_label/loss": LossSum(np.float32(0), np.float32(0))})
  assert balance.warning() is None


@pytest.mark.parametrize(
  ("parts", "mend"),
  [
    ({"label": 2.0, "relation_angle": 1e-3}, "2,000 times smaller, .* --kind-weight relation=X"),
    ({"label": 2.0, "self_layers_1_label": 0.0}, "is 0, so .* --kind-weight self-layers=X"),
    ({"feature_encoder": 2.0, "label": 1e-3}, "change --alpha, or lower the other kinds'"),
    ({"label": 2.0, "entropy": 1e-3}, "raise its weight in LossConfig.extra_terms"),
  ],
)
def test_how_to_mend_it(parts, mend):
  sentence = imbalance(parts, "gradient")
  assert re.search(mend, sentence), sentence
  assert "\n" not in sentence


def test_a_ratio_just_below_a_thousand_is_none():
  assert imbalance({"label": 999.0, "relation_angle": 1.0}, "gradient") is None
  assert imbalance({}, "gradient") is None


def test_the_kind_of_a_term():
  assert kind_of("label") is None
  assert kind_of("entropy") is None
  for name in KINDS:
    prefix = name.replace("-", "_")
    assert kind_of(prefix) == kind_of(f"{prefix}_label") == name
