"""Earlier decoder layers learn from the last: the loss by hand, its gradient, refused layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.config.kinds import SelfLayersConfig
from dss_jax.config.schema import LossConfig, ResponseConfig
from dss_jax.errors import UserError
from dss_jax.losses.kinds import training_objective
from dss_jax.losses.signals import NetworkOutputs

BATCH = {
  "decoder_target_tokens": jnp.asarray([[1, 2, 3, 4, 0]], jnp.int32),
  "decoder_loss_weights": jnp.asarray([[1, 1, 1, 1, 0]], jnp.float32),
  "decoder_target_kinds": jnp.asarray([[0, 1, 1, 1, 0]], jnp.int32),
}


@pytest.fixture
def run(make_config):
  """A run whose only losses are those of earlier layers."""

  def run(layers=(1,), **model):
    loss = LossConfig(
      alpha=0.3,
      cross_entropy_weight=0.0,
      extra_terms={"self-layers": 2.0},
      self_layers=SelfLayersConfig(layers=layers),
      response=ResponseConfig(temperature=2.0),
    )
    return make_config(model={"num_decoder_layers": 4, **model}, loss=loss)

  return run


def softmax(logits):
  exponential = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return exponential / exponential.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk_bytes", [2**27, 4 * 7 * 2], ids=["one chunk", "three chunks"])
def test_by_hand(monkeypatch, run, tied, chunk_bytes):
  monkeypatch.setattr("dss_jax.losses.cross_entropy.CHUNK_BYTES", chunk_bytes)
  config = run((1, 3), logits_via_embedding=tied)
  objective = training_objective(config)
  assert objective.kept_layers(None)["decoder"] == (1, 3)
  rng = np.random.default_rng(0)
  last, one, three = (rng.normal(size=(1, 5, 16)).astype(np.float32) for _ in range(3))
  kernel = rng.normal(size=(16, 7)).astype(np.float32)
  scale = rng.normal(size=16).astype(np.float32)

  @jax.jit
  def loss(last, states, kernel, scale):
    params = {"decoder": {"decoder_norm": {"scale": scale}}}
    student = NetworkOutputs(last, kernel, {}, states, params, config.model)
    total, losses = objective.loss(student, BATCH, objective.denominators(BATCH), training=True)
    return total, objective.sums(losses, BATCH)

  arguments = (last, {1: one, 3: three}, kernel, scale)
  differentiated = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
  (total, sums), gradient = differentiated(*arguments)

  def divergences(state):
    normed = state / np.sqrt(np.mean(state**2, axis=-1, keepdims=True) + 1e-6) * scale
    normed = normed / 4 if tied else normed
    q, p = softmax(last @ kernel / 2), softmax(normed @ kernel / 2)
    return 4 * np.sum(q * np.log(q / p), axis=-1)[0]

  for layer, state in ((1, one), (3, three)):
    of_layer = divergences(state)
    sum_of = sums[f"self_layers_{layer}_label/loss"]
    np.testing.assert_allclose(sum_of, [of_layer[0], 1.0], rtol=1e-4)
    sum_of = sums[f"self_layers_{layer}_rationale/loss"]
    np.testing.assert_allclose(sum_of, [of_layer[1:4].sum(), 3.0], rtol=1e-4)
  means = [0.3 * each[0] + 0.7 * each[1:4].mean() for each in map(divergences, (one, three))]
  np.testing.assert_allclose(total, 2.0 * np.mean(means), rtol=1e-4)
  np.testing.assert_allclose(objective.total(sums), total, rtol=1e-5)
  # The last layer teaches and does not learn; padding neither.
  assert not np.any(gradient[0])
  assert not np.any(gradient[1][1][0, 4])
  direction = rng.normal(size=one.shape).astype(np.float32)
  moved = [
    loss(last, {1: one + sign * 1e-2 * direction, 3: three}, kernel, scale)[0] for sign in (1, -1)
  ]
  np.testing.assert_allclose(
    np.sum(gradient[1][1] * direction), (moved[0] - moved[1]) / 2e-2, rtol=2e-2
  )


def test_zero_where_the_layer_is_the_last(run):
  config = run((2,))
  objective = training_objective(config)
  hidden = np.random.default_rng(0).normal(size=(1, 5, 16)).astype(np.float32)
  normed = hidden / np.sqrt(np.mean(hidden**2, axis=-1, keepdims=True) + 1e-6)
  kernel = np.random.default_rng(1).normal(size=(16, 7)).astype(np.float32)
  params = {"decoder": {"decoder_norm": {"scale": np.ones(16, np.float32)}}}
  student = NetworkOutputs(normed, kernel, {}, {2: hidden}, params, config.model)
  total, _ = objective.loss(student, BATCH, objective.denominators(BATCH), training=True)
  assert float(total) == pytest.approx(0.0, abs=1e-5)


def test_layers(run):
  assert {term.layer for term in training_objective(run(None)).terms if term.layer} == {2}
  for layers in ((4,), (1, 1), ()):
    with pytest.raises(UserError, match=r"has 4 decoder layers, .* give different ones of 1 to 3"):
      training_objective(run(layers))
  shallow = run(None)
  model = dataclasses.replace(shallow.model, num_decoder_layers=1)
  with pytest.raises(UserError, match="leave out --kind self-layers"):
    training_objective(dataclasses.replace(shallow, model=model))
