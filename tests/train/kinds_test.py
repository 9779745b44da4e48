"""Every kind of distillation in a step: however batches are packed and split over devices.

All kinds are trained at once, since each has sums of its own; a gradient is that of the whole loss.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from dss_jax.config.schema import (
  AttentionConfig,
  LossConfig,
  OptimizerConfig,
  SelfAverageConfig,
  SignalConfig,
)
from dss_jax.data.batches import BatchLayout, PackedBatches
from dss_jax.data.packing import Packing, RowShape
from dss_jax.errors import UserError
from dss_jax.losses import cross_entropy
from dss_jax.losses.kinds import check_signals
from dss_jax.model.layer_stacks import stacked_params
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.step import Trainer, batch_loss, trained_tree
from dss_jax.train.teacher_network import TeacherNetwork
from tests.fixtures.small_runs import keep_gradient

# Half a minute and more; CI runs the same kinds from the command line (tests/e2e).
pytestmark = pytest.mark.slow

EXAMPLES = np.arange(12)
STUDENT = {"num_encoder_layers": 2, "num_decoder_layers": 2}
# Another width and depth than the student's.
TEACHER = {"emb_dim": 24, "num_encoder_layers": 3, "num_decoder_layers": 3}
KINDS = {
  "response": 1.0,
  "feature": 2.0,
  "attention": 3.0,
  "self-average": 1.5,
  "self-layers": 2.5,
}
# Those that a batch in microbatches cannot have.
OF_WHOLE_BATCHES = {"relation": 25.0, "mutual-information": 0.1}
TERMS = {
  *("response_label", "response_rationale", "feature_encoder", "feature_decoder"),
  *("self_average_label", "self_average_rationale"),
  *("self_layers_1_label", "self_layers_1_rationale"),
  *("attention_encoder", "attention_decoder"),
  *("relation_distance", "relation_angle", "mutual_information"),
}


@pytest.fixture(scope="module", autouse=True)
def many_chunks():
  """The vocabulary's logits in several chunks, as those of a large batch are."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cross_entropy, "CHUNK_BYTES", 2**15)
    yield


@pytest.fixture(scope="module")
def config(make_config):
  """A run of some kinds."""

  def config(kinds=None, **changes):
    loss = LossConfig(
      alpha=0.3,
      extra_terms=KINDS | OF_WHOLE_BATCHES if kinds is None else kinds,
      attention=AttentionConfig(relation_heads=8),
    )
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
  """Fresh projections, and weights and an average of them drawn at random, off the devices."""
  state = jax.device_get(trainer.init_state())
  params, average = (random_params(trainer.config.model, seed=seed) for seed in (3, 4))
  return dataclasses.replace(state, params=params, average=average)


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
      layout=BatchLayout(sequence_ids=True),
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
    state,
    params=stacked_params(state.params),
    opt_state=stacked_params(state.opt_state),
    average=stacked_params(state.average),
  )
  want = wanted[0], stacked_params(wanted[1])
  assert_close(step_of(make_trainer(run), batch, scanned), want)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_the_optimizer_s_moments_of_projections(config, make_trainer, scan_layers):
  """Both lie over the model axis by the teacher's width."""
  run = config({"feature": 1.0})
  run = dataclasses.replace(run, model=dataclasses.replace(run.model, scan_layers=scan_layers))
  trainer = make_trainer(run, (2, 4), make_optimizer(OptimizerConfig(name="adafactor"), 10))
  kernel = trainer.state_shape.projections["feature_encoder"]["kernel"]
  assert (kernel.shape, kernel.sharding.spec) == ((16, 24), PartitionSpec(None, "model"))
  leaves = jax.tree_util.tree_leaves_with_path(trainer.state_shape.opt_state)
  moments = [
    leaf
    for path, leaf in leaves
    if jax.tree_util.keystr(path).endswith(".v['projections']['feature_encoder']['kernel']")
  ]
  assert [(leaf.shape, leaf.sharding) for leaf in moments] == [(kernel.shape, kernel.sharding)]


def test_microbatches(config, make_trainer, step_of, state, batch):
  batch = {name: array for name, array in batch.items() if not name.endswith("sequence_ids")}
  # The others are sums over tokens as the cross-entropy, in the same pass.
  kinds = {"feature": 2.0, "attention": 3.0, "self-layers": 2.5}
  runs = [config(kinds, accumulation_steps=parts) for parts in (1, 2)]
  without_average = dataclasses.replace(state, average={})
  whole, split = (step_of(make_trainer(run), batch, without_average) for run in runs)
  assert_close(split, whole)


@pytest.mark.parametrize("kind", OF_WHOLE_BATCHES)
def test_microbatches_of_kinds_that_compare_examples_are_refused(config, kind):
  run = config({kind: 1.0}, accumulation_steps=2, signals=SignalConfig(model="teacher"))
  with pytest.raises(
    UserError, match=rf"--kind {kind} compares .* which RunConfig.accumulation_steps = 2 "
  ):
    check_signals(run)


def test_no_gradient_flows_to_a_teacher(trainer, teacher_params, state, batch):
  objective = trainer.objective

  def loss(teacher, average):
    return batch_loss(
      trained_tree(state.params, state.projections),
      batch,
      objective.denominators(batch),
      None,
      config=trainer.config,
      objective=objective,
      signals_of=functools.partial(trainer._signals, objective, teacher, average),
    )[0]

  differentiate = jax.jit(jax.grad(loss, argnums=(0, 1)))
  gradient = trainer._on_mesh(differentiate, teacher_params, state.average)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_the_gradient_norm_of_a_term(config, make_trainer, state, batch):
  """Of the only term with a weight, it is that of the step."""
  run = config({"self-layers": 2.5})
  run = dataclasses.replace(
    run, loss=dataclasses.replace(run.loss, alpha=1.0, cross_entropy_weight=0.0)
  )
  trainer = make_trainer(run)
  on_mesh = trainer.to_mesh(
    len(batch["encoder_segment_ids"]), lambda part: {k: v[part] for k, v in batch.items()}
  )
  current = trainer.state_from_params(jax.tree.map(jnp.asarray, state.params))
  norms = trainer.term_gradient_norms(current, on_mesh)
  _, metrics = trainer.train_step(current, on_mesh)
  assert norms == {"self_layers_1_label": pytest.approx(float(metrics["gradient_norm"]), rel=1e-5)}
  assert norms["self_layers_1_label"] > 0


def test_the_average_follows_the_weights(config, make_trainer, state, batch):
  """The weights after the first step, and then at most a share 1 - decay of each next ones."""
  run = config({"self-average": 1.0})
  run = dataclasses.replace(
    run, loss=dataclasses.replace(run.loss, self_average=SelfAverageConfig(decay=0.6))
  )
  trainer = make_trainer(run, optimizer=optax.sgd(0.1))
  current = trainer.state_from_params(jax.tree.map(jnp.asarray, state.params))
  jax.tree.map(np.testing.assert_array_equal, current.average, current.params)
  on_mesh = trainer.to_mesh(
    len(batch["encoder_segment_ids"]), lambda part: {k: v[part] for k, v in batch.items()}
  )
  weights, losses = [], []
  for _ in range(3):
    current, metrics = trainer.train_step(current, on_mesh)
    losses.append(float(metrics["sums"]["self_average_label/loss"].total))
    weights.append(jax.device_get(current.params))
  # Of decays 0, 1/2 and 0.6, the least of it and 2/3.
  by_hand = jax.tree.map(lambda one, two, three: 0.6 * (one + two) / 2 + 0.4 * three, *weights)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), current.average, by_hand
  )
  # Both are equal before the first step and after it.
  assert losses[:2] == pytest.approx([0.0, 0.0], abs=1e-4)
  assert losses[2] > 1e-3
