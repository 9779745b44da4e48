"""The fused cross-entropy against plain formulas, numerical gradients and numbers by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from dss_jax.losses import cross_entropy as subject
from dss_jax.losses.cross_entropy import cross_entropy

ROWS, LENGTH, WIDTH, WORDS = 3, 10, 4, 11


def arrays(dtype=jnp.float32):
  """Hidden states, kernel, targets, and token_weights of which some are zero."""
  rng = np.random.default_rng(0)
  token_weights = rng.uniform(0.1, 1.0, (ROWS, LENGTH)) * (rng.random((ROWS, LENGTH)) > 0.3)
  return (
    jnp.asarray(rng.normal(size=(ROWS, LENGTH, WIDTH)), dtype),
    jnp.asarray(rng.normal(size=(WIDTH, WORDS)), jnp.float32),
    jnp.asarray(rng.integers(0, WORDS, (ROWS, LENGTH)), jnp.int32),
    jnp.asarray(token_weights, jnp.float32),
  )


def plain_losses(hidden, kernel, targets, *, label_smoothing=0.0, z_loss=0.0):
  """Each position's loss by T5X's published formula, all logits at once."""
  logits = hidden.astype(jnp.float32) @ kernel
  confidence = 1.0 - label_smoothing
  low = (1.0 - confidence) / (WORDS - 1)
  constant = -(confidence * math.log(confidence) + (WORDS - 1) * low * math.log(low + 1e-20))
  soft = jax.nn.one_hot(targets, WORDS) * (confidence - low) + low
  log_z = jax.nn.logsumexp(logits, axis=-1)
  loss = -jnp.sum(soft * jax.nn.log_softmax(logits), axis=-1) - constant
  return loss + z_loss * jnp.square(log_z)


def plain_total(hidden, kernel, targets, token_weights, **options):
  return jnp.sum(plain_losses(hidden, kernel, targets, **options) * token_weights)


def fused_total(*inputs, **options):
  return cross_entropy(*inputs, **options)[0]


def fused(*inputs, **options):
  """cross_entropy, compiled anew at each call."""
  return jax.jit(lambda *each: cross_entropy(*each, **options))(*inputs)


def differentiated(function, **options):
  """The function and its gradient to hidden states and kernel, compiled anew at each call."""
  return jax.jit(jax.value_and_grad(lambda *inputs: function(*inputs, **options), (0, 1)))


OPTIONS = [{}, {"label_smoothing": 0.2, "z_loss": 0.1}]


@pytest.fixture(params=[1, 4, 1000], ids=lambda n: f"{n} chunks")
def chunks(request, monkeypatch):
  """So many chunks of positions; 1000 asks for more than there are positions."""
  logits_bytes = 4 * ROWS * LENGTH * WORDS
  monkeypatch.setattr(subject, "CHUNK_BYTES", logits_bytes / (request.param - 0.5))
  return min(request.param, LENGTH)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_total_and_gradients_equal_the_plain_formula(options, chunks):
  inputs = arrays()
  want = differentiated(plain_total, **options)(*inputs)
  got = differentiated(fused_total, **options)(*inputs)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), got, want)


def test_every_position_has_its_loss_and_correctness(chunks):
  hidden, kernel, targets, token_weights = arrays()
  _, losses = fused(hidden, kernel, targets, token_weights)
  np.testing.assert_allclose(losses.loss, plain_losses(hidden, kernel, targets), rtol=2e-5)
  correct = np.argmax(hidden @ kernel, axis=-1) == targets
  assert 0 < correct.sum() < correct.size
  np.testing.assert_array_equal(losses.correct, correct)


def test_losses_are_the_same_inside_a_gradient():
  """The forward pass of a differentiated call is another piece of code."""
  inputs = arrays()
  call = functools.partial(cross_entropy, z_loss=0.1)
  alone = jax.jit(call)(*inputs)
  (total, losses), _ = jax.jit(jax.value_and_grad(call, has_aux=True))(*inputs)
  np.testing.assert_allclose(total, alone[0], rtol=1e-6)
  np.testing.assert_allclose(losses.loss, alone[1].loss, rtol=1e-6)
  np.testing.assert_array_equal(losses.correct, alone[1].correct)


def test_the_chunks_that_scan_visits(chunks, monkeypatch):
  """No chunk's logits exceed the limit, and there are as few chunks as that allows."""
  sizes = []
  real = subject._logits

  def spy(hidden, kernel):
    logits = real(hidden, kernel)
    sizes.append(logits.size * 4)
    return logits

  monkeypatch.setattr(subject, "_logits", spy)
  fused(*arrays())
  one_position = 4 * ROWS * WORDS
  assert max(sizes) == one_position * math.ceil(LENGTH / chunks)


def test_optax_agrees():
  hidden, kernel, targets, token_weights = arrays()
  want = optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel, targets)
  np.testing.assert_allclose(
    fused(hidden, kernel, targets, token_weights)[0], np.sum(want * token_weights), rtol=1e-5
  )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_numerical_gradient(options):
  _, _, targets, token_weights = arrays()
  check_grads(
    jax.jit(lambda hidden, kernel: fused_total(hidden, kernel, targets, token_weights, **options)),
    arrays()[:2],
    order=1,
    modes=["rev"],
    rtol=1e-2,
    atol=1e-2,
  )


def test_by_hand():
  """Logits (0, ln 3), so the probabilities are 1/4 and 3/4; a weight of 2 on the first word."""
  hidden = np.ones((1, 1, 1), np.float32)
  kernel = np.array([[0.0, math.log(3.0)]], np.float32)
  target, coefficient = np.zeros((1, 1), np.int32), np.full((1, 1), 2.0)
  (total, losses), gradients = jax.jit(jax.value_and_grad(cross_entropy, (0, 1), has_aux=True))(
    hidden, kernel, target, coefficient
  )
  assert float(total) == pytest.approx(2 * math.log(4.0))
  assert float(losses.loss[0, 0]) == pytest.approx(math.log(4.0))
  assert float(losses.correct[0, 0]) == 0.0
  # Twice probability minus target: (-3/2, 3/2); to the hidden state by way of the kernel.
  np.testing.assert_allclose(gradients[1], [[-1.5, 1.5]], rtol=1e-6)
  np.testing.assert_allclose(gradients[0], [[[1.5 * math.log(3.0)]]], rtol=1e-6)


def test_z_loss_by_hand():
  """log Z is ln 4, its square times 0.1 comes on top."""
  hidden, kernel = np.ones((1, 1, 1), np.float32), np.array([[0.0, math.log(3.0)]], np.float32)
  total, _ = fused(hidden, kernel, np.ones((1, 1), np.int32), np.ones((1, 1)), z_loss=0.1)
  assert float(total) == pytest.approx(math.log(4 / 3) + 0.1 * math.log(4) ** 2, rel=1e-5)


def test_the_least_smoothed_loss_is_zero():
  """Where the softmax is exactly the soft target: 0.7 on the word and 0.1 on three others."""
  kernel = np.log(np.array([[0.7, 0.1, 0.1, 0.1]]))
  total, _ = fused(
    np.ones((1, 1, 1), np.float32),
    kernel,
    np.zeros((1, 1), np.int32),
    np.ones((1, 1)),
    label_smoothing=0.3,
  )
  assert float(total) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_position_of_weight_zero_adds_nothing(options, chunks):
  """Whatever stands there: the total and every gradient stay the same, bit for bit."""
  hidden, kernel, targets, token_weights = arrays()
  masked = token_weights == 0
  assert masked.any()
  other_hidden = jnp.where(masked[..., None], 100.0, hidden)
  other_targets = jnp.where(masked, 0, targets)
  grad = differentiated(fused_total, **options)
  want = grad(hidden, kernel, targets, token_weights)
  got = grad(other_hidden, kernel, other_targets, token_weights)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  np.testing.assert_array_equal(got[1][0][masked], 0.0)


def test_all_weights_zero():
  hidden, kernel, targets, _ = arrays()
  total, gradients = differentiated(fused_total)(hidden, kernel, targets, jnp.zeros((ROWS, LENGTH)))
  assert float(total) == 0.0
  assert not any(np.any(gradient) for gradient in gradients)


def test_the_gradient_scales_with_what_the_total_is_multiplied_by():
  inputs = arrays()
  _, once = differentiated(fused_total)(*inputs)
  _, thrice = differentiated(lambda *each: 3.0 * fused_total(*each))(*inputs)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(3 * a, b, rtol=1e-6), once, thrice)


def test_no_gradient_flows_through_the_positions_losses():
  def leaky(hidden, kernel, targets, token_weights):
    total, losses = cross_entropy(hidden, kernel, targets, token_weights)
    return total + jnp.sum(losses.loss) + jnp.sum(losses.correct)

  inputs = arrays()
  _, want = differentiated(fused_total)(*inputs)
  _, got = differentiated(leaky)(*inputs)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), got, want)


def test_bfloat16_hidden_states(chunks):
  """Products of bfloat16, sums and softmax in float32; the gradient has each input's dtype."""
  hidden, kernel, targets, token_weights = arrays(jnp.bfloat16)
  rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
  total, (to_hidden, to_kernel) = differentiated(fused_total)(
    hidden, kernel, targets, token_weights
  )
  want, wanted = differentiated(plain_total)(
    hidden.astype(jnp.float32), rounded, targets, token_weights
  )
  assert total.dtype == jnp.float32
  assert to_hidden.dtype == jnp.bfloat16
  assert to_kernel.dtype == jnp.float32
  np.testing.assert_allclose(total, want, rtol=1e-5)
  for got, want in zip((to_hidden, to_kernel), wanted, strict=True):
    scale = np.abs(want).max()
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.02 * scale)


def test_ties_are_correct_on_the_first_largest_logit():
  hidden, kernel = np.ones((1, 2, 1)), np.array([[1.0, 2.0, 2.0]])
  _, losses = fused(hidden, kernel, np.array([[1, 2]]), np.ones((1, 2)))
  np.testing.assert_array_equal(losses.correct, [[1.0, 0.0]])


def test_more_devices_allow_larger_chunks(monkeypatch):
  hidden, kernel, targets, token_weights = arrays()
  monkeypatch.setattr(subject, "CHUNK_BYTES", 4 * ROWS * LENGTH * WORDS / 4)
  seen = []
  real = subject._fused
  monkeypatch.setattr(subject, "_fused", lambda *each: seen.append(each[-1]) or real(*each))
  for shards in (1, 2, 4, 8):
    call = functools.partial(cross_entropy, shards=shards)
    jax.eval_shape(call, hidden, kernel, targets, token_weights)
  assert seen == [4, 2, 1, 1]
