"""The objective by hand: weights, means over the whole batch, kinds without tokens, new terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.config.schema import LABEL, RATIONALE, LossConfig
from dss_jax.errors import UserError
from dss_jax.losses import kinds as subject
from dss_jax.losses.base import LossSum
from dss_jax.losses.cross_entropy import TokenLosses
from dss_jax.losses.kinds import make_objective
from dss_jax.losses.objective import add_sums
from dss_jax.losses.signals import NetworkOutputs

# Two rows of four positions: two label tokens, four rationale tokens, two of padding.
LOSSES = np.array([[1.0, 3.0, 10.0, 77.0], [20.0, 30.0, 40.0, 99.0]], np.float32)
CORRECT = np.array([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]], np.float32)
WEIGHTS = np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]], np.float32)
KINDS = np.array([[LABEL, LABEL, RATIONALE, LABEL], [RATIONALE, RATIONALE, RATIONALE, RATIONALE]])
# alpha * (1 + 3) / 2 + (1 - alpha) * (10 + 20 + 30 + 40) / 4 at alpha 0.3.
BY_HAND = 0.3 * 2.0 + 0.7 * 25.0
STEP_BY_STEP = make_objective(LossConfig(alpha=0.3))


def batch_of(weights=WEIGHTS, rows=slice(None)):
  return {"decoder_loss_weights": weights[rows], "decoder_target_kinds": KINDS[rows]}


def sums(rows=slice(None), weights=WEIGHTS, objective=STEP_BY_STEP):
  return objective.sums(TokenLosses(LOSSES[rows], CORRECT[rows]), batch_of(weights, rows))


def weighted_sum(weights=WEIGHTS):
  """The sum of the tokens' losses times their weights in the total loss."""
  batch = batch_of(weights)
  each = STEP_BY_STEP.cross_entropy_weights(batch, STEP_BY_STEP.denominators(batch))
  assert not np.any(each[weights == 0])
  return float(np.sum(each * LOSSES))


def test_the_denominators_count_the_tokens_of_a_kind():
  denominators = STEP_BY_STEP.denominators(batch_of())
  assert {name: float(value) for name, value in denominators.items()} == {
    "label": 2.0,
    "rationale": 4.0,
  }


def test_the_token_weights_make_the_sum_the_step_by_step_loss():
  assert weighted_sum() == pytest.approx(BY_HAND, rel=1e-6)


def test_the_sums_give_the_same_loss():
  np.testing.assert_allclose(STEP_BY_STEP.total(sums()), BY_HAND, rtol=1e-6)
  accuracy = [float(x) for kind in ("label", "rationale") for x in sums()[f"{kind}/accuracy"]]
  assert accuracy == [1.0, 2.0, 3.0, 4.0]


def test_sums_of_rows_add_up_to_the_whole():
  rows = [sums(slice(0, 1)), sums(slice(1, 2))]
  jax.tree.map(np.testing.assert_array_equal, add_sums(*rows), sums())
  # The mean of the rows' own losses is another number: this is what LossSum is for.
  own_losses = [float(STEP_BY_STEP.total(each)) for each in rows]
  assert abs(np.mean(own_losses) - BY_HAND) > 1.0


@pytest.mark.parametrize(
  ("alpha", "loss", "kinds", "ranking_kind"),
  [
    (1.0, 2.0, (LABEL,), "label"),
    (0.0, 25.0, (RATIONALE,), "rationale"),
    (0.5, 13.5, (LABEL, RATIONALE), "label"),
  ],
)
def test_alpha(alpha, loss, kinds, ranking_kind):
  objective = make_objective(LossConfig(alpha=alpha))
  assert float(objective.total(sums(objective=objective))) == loss
  assert objective.kinds == kinds
  assert objective.ranking_kind == ranking_kind


def test_tokens_count_by_their_weight():
  weights = WEIGHTS.copy()
  weights[0, 0] = 0.5
  half = sums(weights=weights)
  assert [float(each) for each in half["label/loss"]] == [3.5, 1.5]
  assert float(half["label/accuracy"].total) == 0.5
  label_alone = make_objective(LossConfig(alpha=1.0))
  np.testing.assert_allclose(label_alone.total(half), 3.5 / 1.5, rtol=1e-6)


def test_a_kind_without_tokens_contributes_nothing():
  label_only = np.where(KINDS == LABEL, WEIGHTS, 0).astype(np.float32)
  assert float(STEP_BY_STEP.total(sums(weights=label_only))) == pytest.approx(0.6)
  assert weighted_sum(label_only) == pytest.approx(0.6, rel=1e-6)
  nothing = np.zeros_like(WEIGHTS)
  assert float(STEP_BY_STEP.total(sums(weights=nothing))) == 0.0
  assert weighted_sum(nothing) == 0.0


def test_add_sums_adds_each():
  one = {"label/loss": LossSum(jnp.float32(1), jnp.float32(2))}
  other = {"label/loss": LossSum(jnp.float32(10), jnp.float32(20))}
  assert [float(each) for each in add_sums(one, other)["label/loss"]] == [11.0, 22.0]


def test_an_unknown_term_is_an_error_that_names_the_known_ones():
  with pytest.raises(UserError, match=r"no term 'entropi'; choose from .*entropy, .*response"):
    make_objective(LossConfig(extra_terms={"entropi": 1.0}))


def squared_logits(logits_RmV, targets_Rm, signal):
  """A new term: the mean square of the logits, in one function."""
  return jnp.mean(jnp.square(logits_RmV), axis=-1)


@pytest.fixture
def decoder_outputs():
  """Hidden states, kernel and a batch with four target positions of padding."""
  rng = np.random.default_rng(0)
  batch = {
    "decoder_target_tokens": jnp.asarray(rng.integers(0, 7, (2, 6)), jnp.int32),
    "decoder_loss_weights": jnp.asarray([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]], jnp.float32),
    "decoder_target_kinds": jnp.asarray([[0, 0, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]], jnp.int32),
  }
  hidden, kernel = rng.normal(size=(2, 6, 5)), rng.normal(size=(5, 7))
  return jnp.asarray(hidden, jnp.float32), jnp.asarray(kernel, jnp.float32), batch


@pytest.mark.parametrize("chunk_bytes", [2**27, 2 * 4 * 7 * 2], ids=["one chunk", "three chunks"])
def test_a_new_term_is_one_function_and_one_line_of_config(
  monkeypatch, decoder_outputs, chunk_bytes
):
  """Its value, its gradient and its sums, in the pass of the cross-entropy, chunk by chunk."""
  monkeypatch.setitem(subject.TOKEN_LOSSES, "squared_logits", squared_logits)
  monkeypatch.setattr("dss_jax.losses.cross_entropy.CHUNK_BYTES", chunk_bytes)
  objective = make_objective(LossConfig(alpha=0.3, extra_terms={"squared_logits": 0.25}))
  hidden, kernel, batch = decoder_outputs

  def fused(hidden, kernel):
    student = NetworkOutputs(hidden, kernel)
    total, losses = objective.loss(student, batch, objective.denominators(batch), training=True)
    return total, objective.sums(losses, batch)

  def plain(hidden, kernel):
    logits = hidden @ kernel
    losses = -jnp.take_along_axis(
      jax.nn.log_softmax(logits), batch["decoder_target_tokens"][..., None], axis=-1
    )[..., 0]
    weights, kinds = batch["decoder_loss_weights"], batch["decoder_target_kinds"]
    label, rationale = weights * (kinds == LABEL), weights * (kinds == RATIONALE)
    cross_entropy = 0.3 * jnp.sum(losses * label) / 3 + 0.7 * jnp.sum(losses * rationale) / 5
    return cross_entropy + 0.25 * jnp.sum(squared_logits(logits, None, None) * weights) / 8

  differentiated = jax.jit(jax.value_and_grad(fused, argnums=(0, 1), has_aux=True))
  (total, sums), gradient = differentiated(hidden, kernel)
  wanted, wanted_gradient = jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(hidden, kernel)
  np.testing.assert_allclose(total, wanted, rtol=1e-5)
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
    gradient,
    wanted_gradient,
  )
  np.testing.assert_allclose(jax.jit(fused)(hidden, kernel)[0], total, rtol=1e-6)
  np.testing.assert_allclose(objective.total(sums), total, rtol=1e-6)
  assert float(sums["squared_logits/loss"].weight) == 8.0
  assert set(sums) == {
    "label/loss", "rationale/loss", "squared_logits/loss", "label/accuracy", "rationale/accuracy",
  }  # fmt: skip
