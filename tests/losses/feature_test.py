"""Distances of hidden states by hand, which layers are compared, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads

from dss_jax.config.kinds import FeatureConfig
from dss_jax.errors import UserError
from dss_jax.losses.feature import FeatureLoss, feature_terms, layer_pairs
from dss_jax.losses.signals import NetworkOutputs

# One row of three real positions and one of padding, whose state must not count.
SEGMENTS = np.array([[1, 1, 2, 0]], np.int32)
BATCH = {"encoder_segment_ids": SEGMENTS, "decoder_segment_ids": SEGMENTS}
STUDENT = np.array([[[3.0, 4.0], [1.0, 0.0], [2.0, 2.0], [77.0, 9.0]]], np.float32)
TEACHER = np.array([[[3.0, 4.0], [0.0, 1.0], [-1.0, -1.0], [-5.0, 1.0]]], np.float32)


def outputs(states, stack="decoder"):
  return NetworkOutputs(None, None, **{stack: states})


def loss_of(distance, *pairs, stack="decoder", widths=(2, 2)):
  return FeatureLoss(stack, pairs or ((1, 1),), distance, widths)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize(
  # Cosines 1, 0 and -1; squares (0 + 0) / 2, (1 + 1) / 2 and (9 + 9) / 2.
  ("distance", "by_hand"),
  [("cosine", 0.0 + 1.0 + 2.0), ("mse", 0.0 + 1.0 + 9.0)],
)
def test_by_hand(distance, by_hand, stack):
  loss = loss_of(distance, stack=stack)
  total = loss.total(outputs({1: STUDENT}, stack), outputs({1: TEACHER}, stack), BATCH, {})
  np.testing.assert_allclose(total, by_hand, rtol=1e-6)
  assert float(loss.denominator(BATCH)) == 3.0


def test_pairs_are_averaged():
  loss = loss_of("mse", (0, 1), (2, 1))
  assert loss.student_layers == {"decoder": (0, 2)}
  assert loss.teacher_layers == {"decoder": (1, 1)}
  total = loss.total(outputs({0: STUDENT, 2: TEACHER}), outputs({1: TEACHER}), BATCH, {})
  np.testing.assert_allclose(total, 10.0 / 2, rtol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_zero_for_equal_states(distance):
  same = outputs({1: STUDENT})
  total = loss_of(distance).total(same, same, BATCH, {})
  np.testing.assert_allclose(total, 0.0, atol=1e-6)


def test_a_projection_maps_the_student_s_width_to_the_teacher_s():
  loss = loss_of("mse", widths=(2, 3))
  box = loss.projections(jax.random.key(0))["kernel"]
  assert box.value.shape == (2, 3)
  assert loss_of("mse").projections(jax.random.key(0)) == {}
  kernel = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]], np.float32)
  teacher = outputs({1: STUDENT @ kernel})
  total = loss.total(outputs({1: STUDENT}), teacher, BATCH, {"kernel": jnp.asarray(kernel)})
  np.testing.assert_allclose(total, 0.0, atol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_numerical_gradient(distance):
  loss = loss_of(distance, widths=(2, 3))
  kernel = nn.meta.unbox(loss.projections(jax.random.key(1)))["kernel"]
  teacher = outputs({1: np.concatenate([TEACHER, STUDENT[..., :1]], axis=-1)})

  def total(state, kernel):
    return loss.total(outputs({1: state}), teacher, BATCH, {"kernel": kernel})

  check_grads(jax.jit(total), (STUDENT, kernel), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)
  of_state, _ = jax.jit(jax.grad(total, argnums=(0, 1)))(STUDENT, kernel)
  assert not np.any(of_state[0, 3]), "padding has a gradient"


@pytest.mark.parametrize(
  ("layer_map", "counts", "pairs"),
  [
    ("uniform", (2, 6), ((1, 3), (2, 6))),
    ("uniform", (4, 6), ((1, 2), (2, 3), (3, 5), (4, 6))),
    ("uniform", (3, 2), ((1, 1), (2, 2), (3, 2))),
    ("last", (4, 6), ((4, 6),)),
    (((0, 0), (4, 6)), (4, 6), ((0, 0), (4, 6))),
    ((), (4, 6), ()),
  ],
)
def test_layer_pairs(layer_map, counts, pairs):
  assert layer_pairs(layer_map, *counts, "FeatureConfig.encoder") == pairs


@pytest.mark.parametrize(("pair", "who"), [((5, 6), "student"), ((4, 7), "teacher")])
def test_a_layer_that_is_not_there_is_refused(pair, who):
  layer = pair[0] if who == "student" else pair[1]
  with pytest.raises(UserError, match=rf"FeatureConfig.encoder: the {who} has no layer {layer};"):
    layer_pairs((pair,), 4, 6, "FeatureConfig.encoder")


def test_the_stacks_share_the_weight(make_config):
  student = make_config().model
  terms = functools.partial(feature_terms, "feature", 3.0, student=student, teacher=student)
  both = terms(config=FeatureConfig(), source="teacher")
  assert [(term.name, term.weight) for term in both] == [
    ("feature_encoder", 1.5),
    ("feature_decoder", 1.5),
  ]
  (one,) = terms(config=FeatureConfig(encoder=()), source="teacher")
  assert (one.name, one.weight) == ("feature_decoder", 3.0)
  with pytest.raises(UserError, match="so no states are compared"):
    terms(config=FeatureConfig(encoder=(), decoder=()), source="teacher")
