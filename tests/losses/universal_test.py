"""Sorted probabilities by hand, at zero, numerically, of more and of fewer words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.config.schema import UniversalConfig
from dss_jax.losses.base import Term
from dss_jax.losses.signals import ALIGNED, SortedProbabilities, SparseLogits
from dss_jax.losses.universal import UniversalLoss

LOSS = UniversalLoss(UniversalConfig())
TARGETS = jnp.zeros((1, 1), jnp.int32)


def of(student, teacher, loss=LOSS):
  """The loss of one position with these probabilities."""
  logits = jnp.log(jnp.array([[student]], jnp.float32))
  signal = SortedProbabilities(jnp.array([[teacher]], jnp.float32))
  return float(loss(logits, TARGETS, signal)[0, 0])


def test_by_hand():
  """Student 0.6, 0.3, 0.1 in any order; teacher 0.5, 0.4 and a tail of 0.1."""
  assert of([0.3, 0.1, 0.6], [0.5, 0.4]) == pytest.approx(0.1 + 0.1 + 0.0, abs=1e-6)
  assert of([0.3, 0.1, 0.6], [0.5]) == pytest.approx(0.1 + 0.1, abs=1e-6)
  assert of([0.3, 0.1, 0.6], [0.5, 0.4, 0.1]) == pytest.approx(0.2, abs=1e-6)


def test_zero_where_the_sorted_probabilities_are_equal():
  assert of([0.1, 0.6, 0.3], [0.6, 0.3, 0.1]) == pytest.approx(0.0, abs=1e-6)
  assert of([0.1, 0.6, 0.3], [0.6, 0.3]) == pytest.approx(0.0, abs=1e-6)


def test_a_teacher_with_more_words():
  assert of([0.7, 0.3], [0.4, 0.3, 0.2, 0.1]) == pytest.approx(0.3 + 0.0 + 0.2 + 0.1, abs=1e-6)


def test_the_temperature_is_of_the_student_too():
  probabilities = np.sqrt([0.6, 0.3, 0.1])
  softened = np.sort(probabilities / probabilities.sum())[::-1]
  loss = UniversalLoss(UniversalConfig(temperature=2.0))
  assert of([0.3, 0.1, 0.6], softened, loss) == pytest.approx(0.0, abs=1e-6)
  assert of([0.3, 0.1, 0.6], softened) > 0.1


def test_likeliest_words_of_the_same_vocabulary():
  logits = jnp.log(jnp.array([[[0.3, 0.1, 0.6]]]))
  signal = SparseLogits(jnp.array([[[1, 2]]]), jnp.log(jnp.array([[[0.5, 0.4]]])), 3)
  assert float(LOSS(logits, TARGETS, signal)[0, 0]) == pytest.approx(0.2, abs=1e-6)


def test_the_gradient_is_numerical():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(2, 3, 7)), jnp.float32)
  teacher = -np.sort(-rng.dirichlet(np.ones(9), (2, 3)), axis=-1)[..., :5]
  signal = SortedProbabilities(jnp.asarray(teacher, jnp.float32))

  @jax.jit
  def total(x):
    return jnp.sum(LOSS(x, jnp.zeros((2, 3), jnp.int32), signal))

  direction = jnp.asarray(rng.normal(size=logits.shape), jnp.float32)
  step = 1e-3
  numerical = (total(logits + step * direction) - total(logits - step * direction)) / (2 * step)
  gradient = jax.grad(total)(logits)
  assert float(jnp.vdot(gradient, direction)) == pytest.approx(float(numerical), rel=1e-2)


def test_the_mean_is_over_aligned_tokens():
  """Half of the tokens count: the others are neither in the sum nor in the denominator."""
  batch = {
    "decoder_loss_weights": jnp.array([[1.0, 1.0, 1.0, 0.0]]),
    "decoder_target_kinds": jnp.array([[0, 0, 1, 0]]),
    ALIGNED: jnp.array([[1.0, 0.0, 1.0, 0.0]]),
  }
  term = Term("universal_label", 1.0, (0,), LOSS, "file", weights_from=ALIGNED)
  assert float(term.denominator(batch)) == 1.0
  np.testing.assert_array_equal(term.token_weights(batch), [[1.0, 0.0, 0.0, 0.0]])
