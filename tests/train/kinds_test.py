"""Every kind of distillation in a step: however batches are packed and split over devices.

All kinds are trained at once, since each has sums of its own; a gradient is that of the whole loss.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dss_jax.config.schema import LossConfig
from dss_jax.data.batches import PackedBatches
from dss_jax.data.packing import Packing, RowShape
from dss_jax.losses import cross_entropy
from dss_jax.model.layer_stacks import stacked_params
from dss_jax.train.step import Trainer, batch_loss
from dss_jax.train.teacher_network import TeacherNetwork

EXAMPLES = np.arange(12)
STUDENT = {"num_encoder_layers": 2, "num_decoder_layers": 2}
# Another width and depth than the student's.
TEACHER = {"emb_dim": 24, "num_encoder_layers": 3, "num_decoder_layers": 3}
KINDS = {"response": 1.0, "feature": 2.0}
TERMS = {"response_label", "response_rationale", "feature_encoder", "feature_decoder"}


def keep_gradient():
  """An optimizer that moves nothing and whose state is the gradient."""
  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradient, state, params: (jax.tree.map(jnp.zeros_like, gradient), gradient),
  )


@pytest.fixture(scope="module", autouse=True)
def many_chunks():
  """The vocabulary's logits in several chunks, as those of a large batch are."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cross_entropy, "CHUNK_BYTES", 2**15)
    yield


@pytest.fixture(scope="module")
def config(make_config):
  """A run of some kinds."""

  def config(kinds=KINDS, **changes):
    loss = LossConfig(alpha=0.3, extra_terms=kinds)
    return make_config(model=STUDENT, loss=loss, batch_size=len(EXAMPLES), **changes)

  return config


@pytest.fixture(scope="module")
def teacher_params(make_config, random_params):
  return random_params(make_config(model=TEACHER).model, seed=5)


@pytest.fixture(scope="module")
def make_trainer(config, make_config, mesh_of, teacher_params):
  """A Trainer with its teacher on a mesh."""

  def make_trainer(run=None, mesh=(1, 1), optimizer=None):
    mesh = mesh_of(*mesh)
    teacher = TeacherNetwork(make_config(model=TEACHER).model, mesh)
    teacher.load(
      jax.device_put(teacher_params, jax.tree.map(lambda x: x.sharding, teacher.params_shape))
    )
    return Trainer(run or config(), optimizer or keep_gradient(), mesh, teacher)

  return make_trainer


@pytest.fixture(scope="module")
def trainer(make_trainer):
  return make_trainer()


@pytest.fixture(scope="module")
def state(trainer, random_params):
  """Fresh projections and weights drawn at random, off the devices."""
  state = jax.device_get(trainer.init_state())
  return dataclasses.replace(state, params=random_params(trainer.config.model, seed=3))


@pytest.fixture(scope="module")
def step_of(state):
  """(sums, gradient) of a Trainer's step on a batch."""

  def step_of(trainer, batch, state=state):
    placed = jax.device_put(state, trainer.state_shardings)
    rows = len(batch["encoder_segment_ids"])
    on_mesh = trainer.to_mesh(rows, lambda part: {k: v[part] for k, v in batch.items()})
    after, metrics = trainer.train_step(placed, on_mesh)
    return jax.device_get((metrics["sums"], after.opt_state))

  return step_of


@pytest.fixture(scope="module")
def packed(make_store, row_costs):
  """The batches of a row multiple."""

  def packed(row_multiple=1):
    return PackedBatches(
      make_store(len(EXAMPLES)),
      kinds=(0, 1),
      planned_for=[EXAMPLES],
      costs=row_costs,
      row_multiple=row_multiple,
    )

  return packed


@pytest.fixture(scope="module")
def batch(packed):
  """The examples packed for eight devices, some without a rationale."""
  batches = packed(8)
  packing, sequences = batches.pack(EXAMPLES)
  assert max(map(len, packing.members)) > 1
  return batches.fill(packing, sequences)


@pytest.fixture(scope="module")
def wanted(trainer, step_of, batch):
  return step_of(trainer, batch)


def assert_close(got, want, rtol=1e-5):
  sums, gradient = got
  assert sums.keys() == want[0].keys()
  for name, each in want[0].items():
    np.testing.assert_allclose(sums[name], each, rtol=rtol, atol=1e-6, err_msg=name)
  for (path, ours), theirs in zip(
    jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(want[1]), strict=True
  ):
    size = np.linalg.norm(theirs)
    assert size > 0, path
    assert np.linalg.norm(ours - theirs) <= 2 * rtol * size, jax.tree_util.keystr(path)


def test_every_term_has_a_loss(wanted):
  sums, gradient = wanted
  assert {name.removesuffix("/loss") for name in sums if name.endswith("/loss")} == TERMS | {
    "label",
    "rationale",
  }
  assert all(sums[f"{term}/loss"].total > 0 and sums[f"{term}/loss"].weight > 0 for term in TERMS)
  assert gradient["projections"].keys() == {"feature_encoder", "feature_decoder"}


@pytest.mark.parametrize("mesh", [(8, 1), pytest.param((2, 4), marks=pytest.mark.slow)], ids=str)
def test_devices(make_trainer, step_of, batch, wanted, mesh):
  assert_close(step_of(make_trainer(mesh=mesh), batch), wanted)


def test_packing_and_padding(packed, trainer, step_of, wanted):
  """A sequence a row, in rows longer than any, and rows of padding alone."""
  batches = packed()
  _, sequences = batches.pack(EXAMPLES)
  members = [[number] for number in range(len(sequences))] + [[], []]
  packing = Packing(RowShape(len(members), 24, 20), members)
  assert_close(step_of(trainer, batches.fill(packing, sequences)), wanted)


def test_scanned_layers(config, make_trainer, step_of, state, batch, wanted):
  run = config()
  run = dataclasses.replace(run, model=dataclasses.replace(run.model, scan_layers=True))
  scanned = dataclasses.replace(
    state, params=stacked_params(state.params), opt_state=stacked_params(state.opt_state)
  )
  want = wanted[0], stacked_params(wanted[1])
  assert_close(step_of(make_trainer(run), batch, scanned), want)


def test_microbatches(config, make_trainer, step_of, batch, wanted):
  run = config(accumulation_steps=2)
  assert_close(step_of(make_trainer(run), batch), wanted)


def test_no_gradient_flows_to_the_teacher(trainer, teacher_params, state, batch):
  """Nor does any of its weights change the loss of labels and rationales."""
  objective = trainer.objective

  def loss(teacher):
    signals = trainer._signals(teacher, batch)
    return batch_loss(
      {**state.params, "projections": state.projections},
      batch,
      objective.denominators(batch),
      None,
      config=trainer.config,
      objective=objective,
      signals_of=lambda batch: signals,
    )[0]

  gradient = trainer._on_mesh(jax.jit(jax.grad(loss)), teacher_params)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
