"""One step against the paper's formula written out by hand, on any mesh, packed or not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dss_jax.config.schema import LABEL, RATIONALE, LossConfig
from dss_jax.data.batches import PackedBatches
from dss_jax.data.packing import Packing, RowShape
from dss_jax.losses import cross_entropy
from dss_jax.losses.base import LossSum
from dss_jax.losses.kinds import make_objective
from dss_jax.model.t5 import Transformer
from dss_jax.train import step
from dss_jax.train.step import Trainer, parameter_count
from tests.fixtures.small_runs import keep_gradient

ALPHA = 0.3
EXAMPLES = np.arange(24)
MESHES = [(1, 1), (8, 1), (2, 4)]
PARTS = [1, 3]


def reference_loss(params, config, store, examples, alpha):
  """alpha * CE_label + (1 - alpha) * CE_rationale: two passes, a padded row a sequence.

  Each cross-entropy is the mean over its pass's target tokens (Hsieh et al. 2023, section 3.2,
  as its published code computes it).
  """

  def one_pass(task):
    pairs = [store.pairs[example][task] for example in examples]
    pairs = [pair for pair in pairs if pair is not None]
    if not pairs:
      return 0.0
    inputs, targets = (padded([pair[side] for pair in pairs]) for side in (0, 1))
    start = np.zeros((len(pairs), 1), np.int32)
    shifted = np.concatenate([start, targets[:, :-1]], axis=1)
    real = (targets > 0).astype(np.int32)
    logits = Transformer(config.model).apply(
      {"params": params}, inputs, (inputs > 0).astype(np.int32), shifted, real
    )
    log_probabilities = jax.nn.log_softmax(logits)
    of_target = jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    return -jnp.sum(of_target * real) / real.sum()

  return alpha * one_pass(LABEL) + (1 - alpha) * one_pass(RATIONALE)


def padded(sequences):
  """Token arrays in rows, padded with 0 to the longest."""
  length = max(map(len, sequences))
  return np.stack([np.pad(tokens, (0, length - len(tokens))) for tokens in sequences])


def assert_close(got, want):
  """Loss and each weight's gradient (as a whole) to 1e-5, relative."""
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  for (path, ours), theirs in zip(
    jax.tree_util.tree_leaves_with_path(got[1]), jax.tree.leaves(want[1]), strict=True
  ):
    size = np.linalg.norm(theirs)
    assert size > 0, path
    assert np.linalg.norm(ours - theirs) <= 1e-5 * size, jax.tree_util.keystr(path)


@pytest.fixture(scope="module", autouse=True)
def many_chunks():
  """The vocabulary's logits in several chunks, as those of a large batch are."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cross_entropy, "CHUNK_BYTES", 2**15)
    yield


@pytest.fixture(scope="module")
def config(make_config):
  config = make_config()
  return dataclasses.replace(config, loss=dataclasses.replace(config.loss, alpha=ALPHA))


@pytest.fixture(scope="module")
def store(make_store):
  return make_store(24)


@pytest.fixture(scope="module")
def trainers(config, mesh_of):
  """A Trainer of a mesh and a number of parts, made once."""
  made = {}

  def trainer(mesh, parts=1):
    if (mesh, parts) not in made:
      run = dataclasses.replace(config, accumulation_steps=parts)
      made[mesh, parts] = Trainer(run, keep_gradient(), mesh_of(*mesh))
    return made[mesh, parts]

  return trainer


@pytest.fixture(scope="module")
def state(trainers):
  """Fresh weights, off the devices."""
  return jax.device_get(trainers((1, 1)).init_state())


@pytest.fixture(scope="module")
def take_step(trainers, state):
  """(loss, gradient) of a Trainer's step on a batch."""

  def take_step(batch, mesh=(1, 1), parts=1):
    trainer = trainers(mesh, parts)
    placed = jax.device_put(state, trainer.state_shardings)
    rows = len(batch["encoder_segment_ids"])
    on_mesh = trainer.to_mesh(rows, lambda part: {k: v[part] for k, v in batch.items()})
    after, metrics = trainer.train_step(placed, on_mesh)
    gradient = jax.device_get(after.opt_state)
    size = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(metrics["gradient_norm"], size, rtol=1e-5)
    return float(make_objective(LossConfig(alpha=ALPHA)).total(metrics["sums"])), gradient

  return take_step


@pytest.fixture(scope="module")
def packed(store, row_costs):
  """The batches of a row multiple."""

  def packed(row_multiple=1):
    return PackedBatches(
      store, kinds=(0, 1), planned_for=[EXAMPLES], costs=row_costs, row_multiple=row_multiple
    )

  return packed


@pytest.fixture(scope="module")
def batch(packed):
  """The 24 examples packed for one device."""
  batches = packed()
  return batches.fill(*batches.pack(EXAMPLES))


@pytest.fixture(scope="module")
def reference(config, state, store):
  """(loss, gradient) by the reference, of some examples and an alpha."""

  def reference(examples=EXAMPLES, alpha=ALPHA):
    loss = jax.jit(
      jax.value_and_grad(lambda params: reference_loss(params, config, store, examples, alpha))
    )
    return jax.device_get(loss(state.params))

  return reference


@pytest.fixture(scope="module")
def wanted(reference):
  return reference()


@pytest.mark.parametrize("parts", PARTS, ids=["at once", "3 x 8"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_loss_and_gradient_are_the_papers(take_step, packed, wanted, mesh, parts):
  """24 examples of which eight lack a rationale, on 1 and 8 devices."""
  batches = packed(row_multiple=mesh[0] * parts)
  packing, sequences = batches.pack(EXAMPLES)
  assert len(sequences) == 40
  assert max(map(len, packing.members)) > 1
  assert_close(take_step(batches.fill(packing, sequences), mesh, parts), wanted)


def test_the_reference_tells_alphas_apart(config, state, store, wanted):
  """Else a swapped alpha would pass the test above."""
  swapped = jax.jit(lambda params: reference_loss(params, config, store, EXAMPLES, 1 - ALPHA))
  assert abs(float(swapped(state.params)) - wanted[0]) > 1e-3 * wanted[0]


def test_one_row_a_sequence_gives_the_same(take_step, packed, batch, wanted):
  batches = packed()
  _, sequences = batches.pack(EXAMPLES)
  shape = RowShape(len(sequences), 24, 16)
  alone = batches.fill(Packing(shape, [[i] for i in range(len(sequences))]), sequences)
  assert len(alone["encoder_segment_ids"]) > 1.5 * len(batch["encoder_segment_ids"])
  unpacked = take_step(alone)
  assert_close(unpacked, wanted)
  assert_close(take_step(batch), unpacked)


def test_padding_adds_nothing(take_step, batch):
  """Whatever ids stand there: same loss, same gradient, bit for bit."""
  before = take_step(batch)
  garbage = dict(batch)
  for name, segments in (
    ("encoder_input_tokens", "encoder_segment_ids"),
    ("decoder_input_tokens", "decoder_segment_ids"),
    ("decoder_target_tokens", "decoder_segment_ids"),
  ):
    padding = batch[segments] == 0
    assert padding.any()
    garbage[name] = np.where(padding, 77, batch[name])
  jax.tree.map(np.testing.assert_array_equal, take_step(garbage), before)


def test_a_batch_without_any_rationale(take_step, packed, batch, reference):
  """Finite, and alpha times the label's loss."""
  examples = EXAMPLES[EXAMPLES % 3 == 0]
  batches = packed()
  _, sequences = batches.pack(examples)
  assert {kind for _, kind in sequences} == {LABEL}
  rows = len(batch["encoder_segment_ids"])
  shape = RowShape(
    rows, batch["encoder_segment_ids"].shape[1], batch["decoder_segment_ids"].shape[1]
  )
  members = [list(range(len(sequences)))[row::rows] for row in range(rows)]
  got = take_step(batches.fill(Packing(shape, members), sequences))
  assert np.isfinite(got[0])
  assert_close(got, reference(examples))


def test_a_batch_of_nothing_has_a_loss_and_gradient_of_zero(take_step, batch):
  loss, gradient = take_step({name: np.zeros_like(array) for name, array in batch.items()})
  assert loss == 0.0
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)], ids=str)
def test_evaluation_is_the_same_loss(trainers, state, packed, wanted, mesh):
  trainer = trainers(mesh)
  batches = packed(row_multiple=mesh[0])
  packing, sequences = batches.pack(EXAMPLES)
  on_mesh = trainer.to_mesh(packing.shape.rows, lambda rows: batches.fill(packing, sequences, rows))
  params = jax.device_put(state.params, trainer.state_shardings.params)
  sums, losses = jax.device_get(trainer.eval_step(params, on_mesh))
  np.testing.assert_allclose(
    make_objective(LossConfig(alpha=ALPHA)).total(sums), wanted[0], rtol=1e-5
  )
  assert sums["label/loss"].weight == batches._store.target_lengths[:, LABEL].sum()
  assert sums["rationale/loss"].weight == batches._store.target_lengths[:, RATIONALE].sum()
  weights = np.asarray(on_mesh["decoder_loss_weights"])
  total = sum(sums[f"{kind}/loss"].total for kind in ("label", "rationale"))
  np.testing.assert_allclose(np.sum(losses.loss * weights), total, rtol=1e-5)


@pytest.mark.parametrize("mesh", [(8, 1), (2, 4)], ids=str)
def test_fresh_weights_are_the_same_on_every_mesh(trainers, state, mesh):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(trainers(mesh).init_state()), state)


def test_a_state_of_given_weights(trainers, state):
  trainer = trainers((2, 4))
  given = jax.tree.map(lambda leaf: leaf + 1, state.params)
  made = trainer.state_from_params(jax.device_put(given, trainer.state_shardings.params))
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(made.params), given)
  assert int(made.step) == 0
  assert jax.tree.map(lambda leaf: leaf.sharding, made) == trainer.state_shardings


def test_each_mesh_row_is_filled_once(trainers, batch):
  """On 2 x 4 devices: two halves of the rows, each on four devices."""
  asked = []

  def fill(rows):
    asked.append((rows.start, rows.stop))
    return {"numbers": np.arange(rows.start, rows.stop)}

  array = trainers((2, 4)).to_mesh(16, fill)["numbers"]
  assert sorted(asked) == [(0, 8), (8, 16)]
  np.testing.assert_array_equal(array, np.arange(16))


@pytest.fixture(scope="module")
def real(make_config, mesh_of):
  """A Trainer that learns, with dropout."""
  config = make_config(model={"dropout_rate": 0.1}, seed=5)
  return Trainer(config, optax.adam(1e-2), mesh_of(1, 1))


@pytest.fixture(scope="module")
def fresh(real):
  """Makes the same fresh state again and again."""
  state = jax.device_get(real.init_state())
  return lambda: jax.device_put(state, real.state_shardings)


@pytest.fixture(scope="module")
def on_mesh(real, batch):
  rows = len(batch["encoder_segment_ids"])
  return real.to_mesh(rows, lambda part: {k: v[part] for k, v in batch.items()})


def loss_of(metrics):
  return float(make_objective(LossConfig(alpha=ALPHA)).total(metrics["sums"]))


def test_two_runs_with_one_seed_are_the_same_run_and_learn(real, fresh, on_mesh):
  def run():
    state, losses = fresh(), []
    for number in range(5):
      assert int(state.step) == number
      before = state
      state, metrics = real.train_step(state, on_mesh)
      losses.append(loss_of(metrics))
      assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))  # donated
    return losses

  losses = run()
  assert losses == run()
  assert losses[-1] < 0.98 * losses[0]


def test_a_step_compiled_ahead_is_the_same_step(real, fresh, on_mesh, monkeypatch):
  rows, inputs = on_mesh["encoder_input_tokens"].shape
  shape = RowShape(rows, inputs, on_mesh["decoder_input_tokens"].shape[1])
  want_loss = loss_of(real.train_step(fresh(), on_mesh)[1])
  params = fresh().params
  want_sums = jax.device_get(real.eval_step(params, on_mesh))
  real.compile_ahead([shape], [shape])
  assert all(real._ahead.get((kind, shape)) for kind in ("train", "evaluate"))
  # What is compiled when first met is not asked.
  monkeypatch.setattr(real, "_train", None)
  monkeypatch.setattr(real, "_evaluate", None)
  state = fresh()
  after, metrics = real.train_step(state, on_mesh)
  assert loss_of(metrics) == want_loss
  assert int(after.step) == 1
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))  # donated
  sums = jax.device_get(real.eval_step(params, on_mesh))
  jax.tree.map(np.testing.assert_array_equal, sums, want_sums)
  real.stop_compiling()
  monkeypatch.undo()
  assert loss_of(real.train_step(fresh(), on_mesh)[1]) == want_loss


def test_dropout_differs_from_step_to_step(real, fresh, on_mesh):
  """The same weights at step 0 and, twice, at step 1."""
  losses = []
  for taken in (0, 1, 1):
    number = jax.device_put(np.int32(taken), real.state_shardings.step)
    state = dataclasses.replace(fresh(), step=number)
    losses.append(loss_of(real.train_step(state, on_mesh)[1]))
  assert losses[1] == losses[2]
  assert losses[0] != losses[1]


def test_another_seed_is_another_run(real, fresh, on_mesh, monkeypatch):
  """Other weights to start from, and other dropout for the same weights."""
  loss = loss_of(real.train_step(fresh(), on_mesh)[1])
  monkeypatch.setattr(real, "_seed", np.uint32(6))
  assert loss_of(real.train_step(fresh(), on_mesh)[1]) != loss
  for ours, others in zip(
    jax.tree.leaves(fresh().params), jax.tree.leaves(real.init_state().params), strict=True
  ):
    assert ours.ndim == 1 or not np.array_equal(ours, others)


def test_evaluation_has_no_dropout(real, fresh, on_mesh, trainers):
  params = fresh().params
  got, want = (each.eval_step(params, on_mesh)[0] for each in (real, trainers((1, 1))))
  jax.tree.map(
    lambda ours, without: np.testing.assert_allclose(ours, without, rtol=1e-6), got, want
  )


def test_the_parts_of_a_batch_have_dropout_of_their_own(make_config, monkeypatch):
  """Each part's forward pass gets a key of its own, derived from the step's."""

  def draw(params, batch, weights, key, **settings):
    drawn = jax.random.uniform(key)
    return params * drawn, {"label/loss": LossSum(drawn, drawn)}

  monkeypatch.setattr(step, "batch_loss", draw)
  names = ("decoder_loss_weights", "decoder_target_kinds")
  batch = {name: jnp.zeros((6, 2)) for name in names}
  key = jax.random.key(0)
  config = make_config(accumulation_steps=3)
  gradient, sums = step.accumulated_gradient(jnp.float32(1), batch, key, config=config)
  drawn = [float(jax.random.uniform(jax.random.fold_in(key, part))) for part in range(3)]
  assert len(set(drawn)) == 3
  np.testing.assert_allclose([gradient, sums["label/loss"].total], [sum(drawn)] * 2, rtol=1e-6)


def test_parameter_count(config, state):
  assert parameter_count(config.model) == sum(leaf.size for leaf in jax.tree.leaves(state.params))
