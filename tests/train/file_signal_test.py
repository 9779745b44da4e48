"""A step with a file of next tokens: as with the teacher in the step, on any mesh, in parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.config.schema import LABEL, RATIONALE, LossConfig, ResponseConfig, SignalConfig
from dss_jax.data.batches import BatchLayout, PackedBatches, TargetFeature
from dss_jax.data.packing import RowShape
from dss_jax.losses.signals import ALIGNED, SampledLogits, SortedProbabilities, SparseLogits
from dss_jax.train.step import Trainer
from dss_jax.train.teacher_network import TeacherNetwork, network_outputs
from tests.fixtures.small_runs import keep_gradient

EXAMPLES = np.arange(24)
NO_LAYERS = {"encoder": (), "decoder": ()}


class File:
  """A file in memory: arrays over all positions of the examples, the labels before the rationales.

  `mode` is what it gives of the whole distributions: every word, draws, or sorted probabilities of
  two thirds of the positions.
  """

  def __init__(self, mode, log_probabilities):
    self._mode = mode
    words = next(iter(log_probabilities.values())).shape[-1]
    self._words = words
    rng = np.random.default_rng(0)
    arrays = {}
    for place, values in log_probabilities.items():
      draws = np.stack([rng.multinomial(9, np.exp(each) / np.exp(each).sum()) for each in values])
      arrays[place] = {
        "teacher_values": {"whole": values, "sorted": -np.sort(-values)[:, :20]}.get(mode, draws),
        "teacher_entropies": -np.sum(np.exp(values) * values, axis=-1),
        ALIGNED: (np.arange(len(values)) % 3 > 0 if mode == "sorted" else np.ones(len(values))),
      }
    self.features = [
      TargetFeature(
        name,
        array.shape[1:],
        np.dtype(np.float32),
        lambda example, kind, name=name: arrays[example, kind][name],
      )
      for name, array in next(iter(arrays.values())).items()
    ]

  def signal(self, batch):
    values = batch["teacher_values"]
    ids = jnp.broadcast_to(jnp.arange(self._words), (*values.shape[:2], self._words))
    if self._mode == "whole":
      return SparseLogits(ids, values, self._words)
    if self._mode == "draws":
      return SampledLogits(ids, values, batch["teacher_entropies"], 9, self._words)
    return SortedProbabilities(jnp.exp(values))


@pytest.fixture(scope="module")
def store(make_store):
  return make_store(24)


@pytest.fixture(scope="module")
def packed(store, row_costs):
  def packed(features=()):
    """A batch for eight devices and for three microbatches."""
    batches = PackedBatches(
      store,
      kinds=(LABEL, RATIONALE),
      planned_for=[EXAMPLES],
      costs=row_costs,
      row_multiple=24,
      layout=BatchLayout(features=features),
    )
    packing, sequences = batches.pack(EXAMPLES)
    return packing, sequences, batches.fill(packing, sequences)

  return packed


@pytest.fixture(scope="module")
def teacher(make_config, random_params):
  model = dataclasses.replace(make_config().model, emb_dim=24, num_decoder_layers=2)
  return model, random_params(model, seed=3)


@pytest.fixture(scope="module")
def files(store, packed, teacher):
  """The teacher's log probabilities at temperature 2, as files."""
  packing, sequences, batch = packed()
  model, params = teacher

  @jax.jit
  def log_probabilities(params):
    outputs = network_outputs(params, model, batch, NO_LAYERS)
    return jax.nn.log_softmax(outputs.next_tokens().logits(model.vocab_size) / 2.0)

  every, found = np.asarray(log_probabilities(params)), {}
  for row, numbers in enumerate(packing.members):
    start = 0
    for place in (sequences[number] for number in numbers):
      stop = start + store.target_lengths[place]
      found[place] = every[row, start:stop]
      start = stop
  return {mode: File(mode, found) for mode in ("whole", "draws", "sorted")}


@pytest.fixture(scope="module")
def take_step(make_config, mesh_of, packed, teacher, random_params):
  """(total loss, sums, gradient) of a step, from a file or else with the teacher in it."""

  def take_step(kind, file=None, mesh=(1, 1), parts=1):
    loss = LossConfig(alpha=0.3, extra_terms={kind: 0.7}, response=ResponseConfig(temperature=2.0))
    signals = SignalConfig(logits="file") if file else SignalConfig(model="teacher")
    config = make_config(loss=loss, signals=signals, accumulation_steps=parts)
    mesh = mesh_of(*mesh)
    network = None
    if file is None:
      network = TeacherNetwork(teacher[0], mesh)
      network.load(jax.tree.map(jnp.asarray, teacher[1]))
    trainer = Trainer(config, keep_gradient(), mesh, network, file)
    _, _, batch = packed(file.features if file else ())
    state = trainer.state_from_params(random_params(config.model, seed=1))
    rows, inputs = batch["encoder_input_tokens"].shape
    on_mesh = trainer.to_mesh(rows, lambda part: {k: v[part] for k, v in batch.items()})
    # What is compiled ahead is what runs.
    shape = RowShape(rows, inputs, batch["decoder_target_tokens"].shape[1])
    trainer.compile_ahead([shape], [])
    after, metrics = trainer.train_step(state, on_mesh)
    trainer.stop_compiling()
    sums = jax.device_get(metrics["sums"])
    return float(trainer.objective.total(sums)), sums, jax.device_get(after.opt_state)

  return take_step


def assert_close(got, want, tolerance=2e-5):
  np.testing.assert_allclose(got[0], want[0], rtol=tolerance)
  for ours, theirs in zip(jax.tree.leaves(got[2]), jax.tree.leaves(want[2]), strict=True):
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


def test_every_word_is_the_teacher_in_the_step(take_step, files):
  assert_close(take_step("response", files["whole"]), take_step("response"))


@pytest.fixture(scope="module")
def of_one(take_step, files):
  kinds = {"draws": "response", "sorted": "universal"}
  return {mode: take_step(kind, files[mode]) for mode, kind in kinds.items()}


@pytest.mark.parametrize("mode", ["draws", "sorted"])
@pytest.mark.parametrize(("mesh", "parts"), [((1, 1), 3), ((8, 1), 1), ((2, 4), 1)])
def test_any_mesh_and_any_parts(take_step, files, of_one, mode, mesh, parts):
  kind = {"draws": "response", "sorted": "universal"}[mode]
  assert_close(take_step(kind, files[mode], mesh, parts), of_one[mode])


def test_the_mean_is_over_aligned_tokens(packed, files, of_one):
  """Two thirds of the positions: those alone are in the denominator."""
  _, _, batch = packed(files["sorted"].features)
  sums = of_one["sorted"][1]
  for kind, name in ((LABEL, "label"), (RATIONALE, "rationale")):
    of_kind = batch["decoder_target_kinds"] == kind
    aligned = np.sum(batch["decoder_loss_weights"] * batch[ALIGNED] * of_kind)
    assert 0 < aligned < np.sum(batch["decoder_loss_weights"] * of_kind)
    assert float(sums[f"universal_{name}/loss"].weight) == aligned
