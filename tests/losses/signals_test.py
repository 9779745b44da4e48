"""Next tokens of a file against whole distributions: truncated, rounded and drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.config.schema import ResponseConfig
from dss_jax.losses.response import ResponseLoss
from dss_jax.losses.signals import DenseLogits, SampledLogits, SparseLogits

WORDS = 7
TARGETS = jnp.zeros((2, 3), jnp.int32)


@pytest.fixture(scope="module")
def logits():
  """The student's and the teacher's, [2, 3, V], of tokens that are more and less certain."""
  rng = np.random.default_rng(0)
  teacher = rng.normal(size=(2, 3, WORDS)) * np.array([1.0, 3.0, 6.0])[None, :, None]
  return jnp.asarray(rng.normal(size=(2, 3, WORDS)), jnp.float32), jnp.asarray(teacher, jnp.float32)


def dense(teacher):
  """The whole distribution: the logits are the product with the unit matrix."""
  return DenseLogits(teacher, jnp.eye(teacher.shape[-1]))


def likeliest(teacher, count, temperature=1.0):
  values, ids = jax.lax.top_k(jax.nn.log_softmax(teacher / temperature), count)
  return SparseLogits(ids, values, teacher.shape[-1])


def value_and_gradient(config, student, signal):
  """Each position's divergence, and the gradient of their sum."""
  loss = ResponseLoss(config)

  def total(student):
    values = loss(student, TARGETS, signal)
    return jnp.sum(values), values

  gradient, values = jax.jit(jax.grad(total, has_aux=True))(student)
  return values, gradient


def test_further_rows_of_the_student_are_padding(logits):
  student, teacher = logits
  wider = jnp.pad(student, [(0, 0), (0, 0), (0, 2)], constant_values=5.0)
  for signal in (likeliest(teacher, WORDS), drawn(teacher, np.zeros((2, 3, 4), int))):
    want, _ = value_and_gradient(ResponseConfig(), student, signal)
    got, gradient = value_and_gradient(ResponseConfig(), wider, signal)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert not np.any(gradient[..., WORDS:])


def drawn(teacher, ids, temperature=1.0):
  """The signal of draws [R, M, K]: each word that was drawn, with its count."""
  log_q = jax.nn.log_softmax(teacher / temperature)
  entropy = -jnp.sum(jnp.exp(log_q) * log_q, axis=-1)
  counts = np.stack([(ids == word).sum(axis=-1) for word in range(WORDS)], axis=-1)
  every = np.broadcast_to(np.arange(WORDS), counts.shape)
  return SampledLogits(
    jnp.asarray(every), jnp.asarray(counts, jnp.float32), entropy, ids.shape[-1], WORDS
  )


def test_draws_by_hand():
  """Teacher 0.5, 0.25, 0.25, student the same: draws 0, 0, 1, 0 of it."""
  both = jnp.log(jnp.array([[[0.5, 0.25, 0.25]]]))
  signal = SampledLogits(
    jnp.array([[[0, 1, 0]]]),
    jnp.array([[[3.0, 1.0, 0.0]]]),
    jnp.array([[1.5 * np.log(2.0)]], jnp.float32),
    draws=4,
    words=3,
  )
  got, gradient = value_and_gradient(ResponseConfig(), both, signal)
  np.testing.assert_allclose(got, [[(0.75 + 0.25 * 2 - 1.5) * np.log(2.0)]], rtol=1e-5)
  np.testing.assert_allclose(gradient, [[[0.5 - 0.75, 0.25 - 0.25, 0.25]]], atol=1e-6)


def test_draws_are_unbiased(logits):
  """The mean loss and gradient over many draws are the divergence's, within their errors."""
  student, teacher = logits
  config = ResponseConfig(temperature=2.0)
  log_q = jax.nn.log_softmax(teacher / 2.0)
  want = value_and_gradient(config, student, dense(teacher))
  ids = jax.random.categorical(jax.random.key(3), log_q, shape=(3000, 5, 2, 3))
  signal = drawn(teacher, np.moveaxis(np.asarray(ids), 1, -1), 2.0)

  def of(counts):
    return value_and_gradient(config, student, signal.replace(counts_RMK=counts))

  signal = signal.replace(ids_RMK=signal.ids_RMK[0])
  for found, true in zip(jax.vmap(of)(signal.counts_RMK), want, strict=True):
    error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    difference = np.mean(found, axis=0) - np.asarray(true)
    assert np.linalg.norm(difference) < 1.5 * np.linalg.norm(error)
    # The errors are small enough to show that the likeliest words alone are biased.
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(true)


def test_few_of_the_likeliest_words_are_biased(logits):
  """Else the test above would find nothing."""
  student, teacher = logits
  want = value_and_gradient(ResponseConfig(), student, dense(teacher))[1]
  got = value_and_gradient(ResponseConfig(), student, likeliest(teacher, 2))[1]
  assert np.abs(np.asarray(got - want)).max() > 0.01


def test_float16_is_enough(logits):
  """Log probabilities to 11 bits move the gradient by less than a thousandth."""
  student, teacher = logits
  want = value_and_gradient(ResponseConfig(), student, likeliest(teacher, 4))[1]
  signal = likeliest(teacher, 4)
  short = signal.log_probabilities_RMK.astype(jnp.float16).astype(jnp.float32)
  got = value_and_gradient(ResponseConfig(), student, signal.replace(log_probabilities_RMK=short))
  assert np.linalg.norm(got[1] - want) < 1e-3 * np.linalg.norm(want)


def test_the_gradient_of_draws_is_numerical(logits):
  student, teacher = logits
  signal = drawn(teacher, np.array([[[0, 2, 2], [1, 1, 1], [6, 5, 0]]] * 2))
  loss = ResponseLoss(ResponseConfig(temperature=0.5))
  direction = jax.random.normal(jax.random.key(0), student.shape)
  step = 1e-2

  @jax.jit
  def total(x):
    return jnp.sum(loss(x, TARGETS, signal))

  numerical = (total(student + step * direction) - total(student - step * direction)) / (2 * step)
  _, gradient = value_and_gradient(ResponseConfig(temperature=0.5), student, signal)
  assert float(jnp.vdot(gradient, direction)) == pytest.approx(float(numerical), rel=2e-3)
