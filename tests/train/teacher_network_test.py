"""A step with a teacher network: the loss by hand, any mesh, microbatches, small weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dss_jax.config.schema import LABEL, RATIONALE, LossConfig, ResponseConfig
from dss_jax.data.batches import PackedBatches
from dss_jax.model.layer_stacks import stacked_params
from dss_jax.model.t5 import Transformer
from dss_jax.train.step import Trainer
from dss_jax.train.teacher_network import TeacherNetwork
from tests.fixtures.small_runs import keep_gradient

EXAMPLES = np.arange(24)
WEIGHT = 0.7


@pytest.fixture(scope="module")
def config(make_config):
  loss = LossConfig(
    alpha=0.3, extra_terms={"response": WEIGHT}, response=ResponseConfig(temperature=2.0)
  )
  return dataclasses.replace(make_config(), loss=loss)


@pytest.fixture(scope="module")
def teacher_model(config):
  """Wider and deeper than the student, with heads that a model axis of 4 does not divide."""
  return dataclasses.replace(
    config.model, emb_dim=24, num_heads=6, num_encoder_layers=2, num_decoder_layers=3
  )


@pytest.fixture(scope="module")
def teacher_params(teacher_model, random_params):
  return random_params(teacher_model, seed=3)


@pytest.fixture(scope="module")
def batch(make_store, row_costs):
  """Rows for eight devices, and for three microbatches."""
  batches = PackedBatches(
    make_store(24),
    kinds=(LABEL, RATIONALE),
    planned_for=[EXAMPLES],
    costs=row_costs,
    row_multiple=24,
  )
  return batches.fill(*batches.pack(EXAMPLES))


@pytest.fixture(scope="module")
def params(config, random_params):
  return random_params(config.model, seed=1)


@pytest.fixture(scope="module")
def take_step(config, teacher_model, teacher_params, mesh_of, batch, params):
  """(total loss, gradient) of a step."""

  def take_step(mesh=(1, 1), parts=1, weights="float32", model=teacher_model, given=teacher_params):
    mesh = mesh_of(*mesh)
    network = TeacherNetwork(model, mesh, weights)
    run = dataclasses.replace(config, accumulation_steps=parts)
    trainer = Trainer(run, keep_gradient(), mesh, network)
    network.load(jax.tree.map(jnp.asarray, given))
    placed = jax.tree.map(
      lambda leaf, shape: leaf.sharding == shape.sharding, network.params, network.params_shape
    )
    assert all(jax.tree.leaves(placed))
    state = trainer.state_from_params(params)
    on_mesh = trainer.to_mesh(
      len(batch["decoder_loss_weights"]), lambda rows: {k: v[rows] for k, v in batch.items()}
    )
    after, metrics = trainer.train_step(state, on_mesh)
    sums = jax.device_get(metrics["sums"])
    return float(trainer.objective.total(sums)), jax.device_get(after.opt_state)

  return take_step


@pytest.fixture(scope="module")
def wanted(config, teacher_model, teacher_params, batch, params):
  """The loss and its gradient, from whole logits."""
  names = ("encoder_input_tokens", "encoder_segment_ids", "decoder_input_tokens")
  inputs = [batch[name] for name in (*names, "decoder_segment_ids")]

  def loss(params):
    student = Transformer(config.model).apply({"params": params}, *inputs)
    teacher = Transformer(teacher_model).apply({"params": teacher_params}, *inputs)
    of_target = jnp.take_along_axis(
      jax.nn.log_softmax(student), batch["decoder_target_tokens"][..., None], axis=-1
    )[..., 0]
    apart = 4.0 * optax.losses.kl_divergence(
      jax.nn.log_softmax(student / 2.0), jax.nn.softmax(teacher / 2.0)
    )
    total = 0.0
    for kind, share in ((LABEL, 0.3), (RATIONALE, 0.7)):
      weights = batch["decoder_loss_weights"] * (batch["decoder_target_kinds"] == kind)
      total += share * jnp.sum((WEIGHT * apart - of_target) * weights) / jnp.sum(weights)
    return total

  return jax.jit(jax.value_and_grad(loss))(params)


def assert_close(got, want, tolerance=1e-5):
  np.testing.assert_allclose(got[0], want[0], rtol=tolerance)
  for ours, theirs in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


@pytest.mark.parametrize(
  ("mesh", "parts"), [((1, 1), 3), pytest.param((8, 1), 1, marks=pytest.mark.slow), ((2, 4), 1)]
)
def test_a_step_is_the_loss_by_hand(take_step, wanted, mesh, parts):
  assert_close(take_step(mesh, parts), wanted, 2e-5)


@pytest.mark.parametrize(("weights", "tolerance"), [("bfloat16", 0.05), ("int8", 0.1)])
@pytest.mark.parametrize("scanned", [pytest.param(False, marks=pytest.mark.slow), True])
def test_weights_that_are_stored_small(
  take_step, wanted, teacher_model, teacher_params, weights, tolerance, scanned
):
  """About the same loss, but not the same: the weights are rounded."""
  model, given = teacher_model, teacher_params
  if scanned:
    model, given = dataclasses.replace(model, scan_layers=True), stacked_params(given)
  loss, _ = take_step((2, 4), weights=weights, model=model, given=given)
  assert loss == pytest.approx(float(wanted[0]), rel=tolerance)
  assert loss != pytest.approx(float(wanted[0]), rel=1e-7)


def test_small_weights_take_less_memory(teacher_model, teacher_params, mesh_of):
  def stored_bytes(weights):
    network = TeacherNetwork(teacher_model, mesh_of(1, 1), weights)
    network.load(jax.tree.map(jnp.asarray, teacher_params))
    kernels = {k: v for k, v in teacher_params.items() if k != "token_embedder"}
    loaded = {k: network.params[k] for k in kernels}
    return sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))

  whole, half, quarter = (stored_bytes(each) for each in ("float32", "bfloat16", "int8"))
  assert half < 0.6 * whole
  assert quarter < 0.4 * whole


@pytest.mark.parametrize(("weights", "programs"), [("float32", 0), ("int8", 5)])
def test_layers_of_one_shape_are_converted_by_one_program(
  teacher_model, teacher_params, mesh_of, caplog, weights, programs
):
  """Kernels into and out of the heads, into and out of the wide layer, and of the logits."""
  network = TeacherNetwork(teacher_model, mesh_of(1, 1), weights)
  params = jax.tree.map(jnp.asarray, teacher_params)
  caplog.clear()
  with jax.log_compiles():
    network.load(params)
  compiled = [line for line in caplog.messages if line.startswith("Compiling ")]
  assert len(compiled) == programs, compiled
