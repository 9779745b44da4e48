"""Divergences of next-token distributions: by hand, by other definitions, and in the fused pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from dss_jax.config.schema import LABEL, RATIONALE, LossConfig, ResponseConfig
from dss_jax.losses.base import Term
from dss_jax.losses.kinds import evaluation_objective
from dss_jax.losses.objective import Objective
from dss_jax.losses.response import ResponseLoss
from dss_jax.losses.signals import DenseLogits, NetworkOutputs, SparseLogits
from dss_jax.losses.step_by_step import step_by_step_terms

DIVERGENCES = ("forward", "reverse", "skewed-forward", "skewed-reverse", "jensen-shannon")
WORDS = 7


def logits_of(seed, shape=(2, 5, WORDS)):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape, scale=2.0), jnp.float32)


def dense(logits):
  """A teacher that gives these very logits: the product of them with the identity."""
  return DenseLogits(logits, jnp.eye(logits.shape[-1], dtype=jnp.float32))


def divergence(student, teacher, **settings):
  loss = ResponseLoss(ResponseConfig(**settings))
  return loss(student, jnp.zeros(student.shape[:-1], jnp.int32), teacher)


def with_gradient(student, teacher, name):
  """Each position's divergence, and the gradient of their sum."""

  def total(student):
    each = divergence(student, dense(teacher), divergence=name)
    return jnp.sum(each), each

  gradient, each = jax.jit(jax.grad(total, has_aux=True))(student)
  return each, gradient


def by_definition(student, teacher, divergence, temperature=1.0, skew=0.1, mixture=0.5):
  """Numbers in float64 from the definitions, without logarithms of sums."""
  q, p = (
    np.exp(np.float64(x) / temperature) / np.exp(np.float64(x) / temperature).sum(-1, keepdims=True)
    for x in (teacher, student)
  )

  def kl(one, other):
    return (one * np.log(one / other)).sum(-1)

  mixed = mixture * q + (1 - mixture) * p
  return (
    temperature**2
    * {
      "forward": lambda: kl(q, p),
      "reverse": lambda: kl(p, q),
      "skewed-forward": lambda: kl(q, skew * q + (1 - skew) * p),
      "skewed-reverse": lambda: kl(p, skew * p + (1 - skew) * q),
      "jensen-shannon": lambda: mixture * kl(q, mixed) + (1 - mixture) * kl(p, mixed),
    }[divergence]()
  )


def test_forward_by_hand():
  """Teacher (3/4, 1/4), student (1/2, 1/2): 0.75 log 1.5 + 0.25 log 0.5 = 0.130812."""
  student = jnp.zeros((1, 1, 2))
  teacher = dense(jnp.log(jnp.asarray([[[3.0, 1.0]]])))
  np.testing.assert_allclose(divergence(student, teacher), [[0.130812]], rtol=1e-5)
  # Reverse: 0.5 log (2/3) + 0.5 log 2 = 0.143841.
  backwards = divergence(student, teacher, divergence="reverse")
  np.testing.assert_allclose(backwards, [[0.143841]], rtol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_each_is_its_definition(name, temperature):
  student, teacher = logits_of(0), logits_of(1)
  ours = divergence(student, dense(teacher), divergence=name, temperature=temperature)
  np.testing.assert_allclose(ours, by_definition(student, teacher, name, temperature), rtol=1e-4)


def test_forward_is_what_optax_computes():
  student, teacher = logits_of(2), logits_of(3)
  theirs = optax.losses.kl_divergence(jax.nn.log_softmax(student), jax.nn.softmax(teacher))
  np.testing.assert_allclose(divergence(student, dense(teacher)), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_all_or_nothing_is_finite(share):
  student, teacher = logits_of(4), logits_of(5)
  for name in ("skewed-forward", "jensen-shannon"):
    value = divergence(student, dense(teacher), divergence=name, skew=share, mixture=share)
    wanted = by_definition(student, teacher, name, skew=share, mixture=share)
    np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_an_equal_teacher_gives_zero_without_gradient(name):
  logits = logits_of(6)
  value, gradient = with_gradient(logits, logits, name)
  np.testing.assert_allclose(value, 0.0, atol=1e-6)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_gradient_is_the_numerical_one(name):
  with jax.enable_x64(True):
    student, teacher = (jnp.asarray(logits_of(seed, (1, 2, 5)), jnp.float64) for seed in (7, 8))
    loss_of = functools.partial(divergence, divergence=name, temperature=2.0)
    loss = jax.jit(lambda x: loss_of(x, dense(teacher)))
    check_grads(loss, (student,), order=1, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_extreme_logits_stay_finite(name):
  student = jnp.asarray([[[80.0, -80.0, 0.0]]])
  value, gradient = with_gradient(student, -student, name)
  assert np.all(np.isfinite(value))
  assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_sparse_logits_of_every_word_are_the_dense_ones(name):
  student, teacher = logits_of(9), logits_of(10)
  log_probabilities, ids = jax.lax.top_k(jax.nn.log_softmax(teacher), WORDS)
  sparse = SparseLogits(ids, log_probabilities, WORDS)
  np.testing.assert_allclose(
    divergence(student, sparse, divergence=name),
    divergence(student, dense(teacher), divergence=name),
    rtol=1e-4,
    atol=1e-5,
  )


def test_the_tail_is_one_outcome():
  """Teacher (0.5, 0.3, 0.2) of which two are kept, student uniform over three."""
  sparse = SparseLogits(jnp.asarray([[[0, 1]]]), jnp.log(jnp.asarray([[[0.5, 0.3]]])), words=3)
  wanted = 0.5 * np.log(1.5) + 0.3 * np.log(0.9) + 0.2 * np.log(0.6)
  np.testing.assert_allclose(divergence(jnp.zeros((1, 1, 3)), sparse), [[wanted]], rtol=1e-5)


def test_rows_that_only_one_network_has_are_padding():
  student, teacher = logits_of(11), logits_of(12)
  wider = jnp.concatenate([teacher, jnp.full((2, 5, 3), 50.0)], axis=-1)
  alone = divergence(student, dense(teacher))
  np.testing.assert_allclose(divergence(student, dense(wider)), alone, rtol=1e-5)
  longer = jnp.concatenate([student, jnp.full((2, 5, 3), 50.0)], axis=-1)
  np.testing.assert_allclose(divergence(longer, dense(teacher)), alone, rtol=1e-5)


@pytest.mark.parametrize("chunk_bytes", [2**27, 2 * 4 * WORDS * 2], ids=["one chunk", "chunks"])
@pytest.mark.parametrize("name", ["forward", "jensen-shannon"])
def test_the_fused_pass_is_the_plain_computation(monkeypatch, chunk_bytes, name):
  """Value, sums and gradient beside the cross-entropy; the teacher gets none."""
  monkeypatch.setattr("dss_jax.losses.cross_entropy.CHUNK_BYTES", chunk_bytes)
  rng = np.random.default_rng(13)
  loss = ResponseLoss(ResponseConfig(divergence=name, temperature=1.5))
  terms = step_by_step_terms(0.3) + tuple(
    Term(f"response_{kind}", 0.7, (kind,), loss, "teacher") for kind in (LABEL, RATIONALE)
  )
  objective = Objective(terms)
  batch = {
    "decoder_target_tokens": jnp.asarray(rng.integers(0, WORDS, (2, 6)), jnp.int32),
    "decoder_loss_weights": jnp.asarray([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]], jnp.float32),
    "decoder_target_kinds": jnp.asarray([[0, 0, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]], jnp.int32),
  }
  hidden, kernel = logits_of(14, (2, 6, 5)), logits_of(15, (5, WORDS))
  teacher_hidden, teacher_kernel = logits_of(16, (2, 6, 3)), logits_of(17, (3, WORDS))

  def fused(hidden, kernel, teacher_hidden):
    total, losses = objective.loss(
      NetworkOutputs(hidden, kernel),
      batch,
      objective.denominators(batch),
      {"teacher": NetworkOutputs(teacher_hidden, teacher_kernel)},
      training=True,
    )
    return total, objective.sums(losses, batch)

  def plain(hidden, kernel):
    logits = hidden @ kernel
    losses = -jnp.take_along_axis(
      jax.nn.log_softmax(logits), batch["decoder_target_tokens"][..., None], axis=-1
    )[..., 0]
    apart = loss(logits, batch["decoder_target_tokens"], dense(teacher_hidden @ teacher_kernel))
    weights, kinds = batch["decoder_loss_weights"], batch["decoder_target_kinds"]
    label, rationale = weights * (kinds == LABEL), weights * (kinds == RATIONALE)
    cross_entropy = 0.3 * jnp.sum(losses * label) / 3 + 0.7 * jnp.sum(losses * rationale) / 5
    return cross_entropy + 0.7 * (jnp.sum(apart * label) / 3 + jnp.sum(apart * rationale) / 5)

  differentiated = jax.jit(jax.value_and_grad(fused, argnums=(0, 1, 2), has_aux=True))
  (total, sums), gradient = differentiated(hidden, kernel, teacher_hidden)
  wanted, wanted_gradient = jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(hidden, kernel)
  np.testing.assert_allclose(total, wanted, rtol=1e-5)
  np.testing.assert_allclose(objective.total(sums), wanted, rtol=1e-5)
  for ours, theirs in zip(gradient[:2], wanted_gradient, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
  assert not np.any(gradient[2])


@pytest.mark.parametrize(("weight", "evaluated"), [(0.0, 1.0), (2.0, 2.0)])
def test_evaluation_has_the_terms_of_the_student_alone(weight, evaluated):
  loss = LossConfig(alpha=0.25, cross_entropy_weight=weight, extra_terms={"response": 1.0})
  terms = evaluation_objective(loss).terms
  weights = [("label", 0.25 * evaluated), ("rationale", 0.75 * evaluated)]
  assert [(term.name, term.weight) for term in terms] == weights


def test_a_weight_of_zero_keeps_the_cross_entropy_in_the_metrics():
  terms = step_by_step_terms(LossConfig().alpha, 0.0)
  assert [(term.name, term.weight) for term in terms] == [("label", 0.0), ("rationale", 0.0)]
