"""Next tokens of a teacher: the likeliest of whole logits, and draws that are keyed by place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.config.schema import LABEL, RATIONALE
from dss_jax.data.batches import BatchLayout, PackedBatches
from dss_jax.model.t5 import Transformer
from dss_jax.train.next_tokens import NextTokenFunction, draw, draws, likeliest, numbers_of
from dss_jax.train.teacher_network import TeacherNetwork

# Half a minute and more; CI runs the same kinds from the command line (tests/e2e).
pytestmark = pytest.mark.slow

WORDS = 120
EXAMPLES = np.arange(8)


@pytest.fixture(scope="module")
def config(make_config):
  return make_config().model


@pytest.fixture(scope="module")
def params(config, random_params):
  return random_params(config, seed=1)


@pytest.fixture(scope="module")
def store(make_store):
  return make_store(8)


@pytest.fixture(scope="module")
def batch_of(store, row_costs):
  def batch_of(examples, row_multiple=8):
    batches = PackedBatches(
      store,
      kinds=(LABEL, RATIONALE),
      planned_for=[examples],
      costs=row_costs,
      row_multiple=row_multiple,
      layout=BatchLayout(features=numbers_of(store.target_lengths)),
    )
    return batches.fill(*batches.pack(examples))

  return batch_of


@pytest.fixture(scope="module")
def of_teacher(config, params, mesh_of):
  def of_teacher(batch, reduce, mesh=(1, 1), temperature=2.0):
    network = TeacherNetwork(config, mesh_of(*mesh))
    network.load(jax.tree.map(jnp.asarray, params))
    return NextTokenFunction(network, reduce, words=WORDS, temperature=temperature)(batch)

  return of_teacher


@pytest.fixture(scope="module")
def wanted(config, params, batch_of):
  """Log probabilities over the first words at temperature 2, from whole logits."""
  batch = batch_of(EXAMPLES)
  names = ("encoder_input_tokens", "encoder_segment_ids", "decoder_input_tokens")
  inputs = [batch[name] for name in (*names, "decoder_segment_ids")]

  @jax.jit
  def log_probabilities(params):
    logits = Transformer(config).apply({"params": params}, *inputs)
    return jax.nn.log_softmax(logits[..., :WORDS] / 2.0)

  return np.asarray(log_probabilities(params))


@pytest.mark.parametrize("mesh", [(1, 1), (8, 1), (2, 4)])
def test_the_likeliest(of_teacher, batch_of, wanted, mesh):
  batch = batch_of(EXAMPLES)
  ids, values = of_teacher(batch, likeliest(5), mesh)
  is_real = batch["decoder_segment_ids"] > 0
  ordered = -np.sort(-wanted, axis=-1)[..., :5]
  np.testing.assert_allclose(values[is_real], ordered[is_real], rtol=1e-4, atol=1e-5)
  found = np.take_along_axis(wanted, ids, axis=-1)
  np.testing.assert_allclose(found[is_real], ordered[is_real], rtol=1e-4, atol=1e-5)


def test_chunks_change_nothing(monkeypatch, of_teacher, batch_of):
  batch = batch_of(EXAMPLES)
  whole = [of_teacher(batch, reduce) for reduce in (likeliest(5), draws(4, seed=3))]
  rows = len(batch["decoder_segment_ids"])
  monkeypatch.setattr("dss_jax.train.next_tokens.CHUNK_BYTES", 3 * 4 * rows * WORDS)
  parts = [of_teacher(batch, reduce) for reduce in (likeliest(5), draws(4, seed=3))]
  for ours, theirs in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_the_entropy(of_teacher, batch_of, wanted):
  batch = batch_of(EXAMPLES)
  _, entropy = of_teacher(batch, draws(4, seed=3))
  by_hand = -np.sum(np.exp(wanted) * wanted, axis=-1)
  is_real = batch["decoder_segment_ids"] > 0
  np.testing.assert_allclose(entropy[is_real], by_hand[is_real], rtol=1e-4)


def test_draws_follow_from_the_place_and_not_from_the_batch(of_teacher, batch_of):
  def by_place(examples, seed, mesh=(1, 1)):
    batch = batch_of(examples)
    ids, _ = of_teacher(batch, draws(6, seed), mesh)
    names = ("target_examples", "decoder_target_kinds", "target_places")
    is_real = batch["decoder_segment_ids"] > 0
    places = zip(*(batch[name][is_real].tolist() for name in names), strict=True)
    return dict(zip(places, map(tuple, ids[is_real].tolist()), strict=True))

  whole = by_place(EXAMPLES, 3)
  assert len(set(whole.values())) > 0.9 * len(whole)
  some = by_place(EXAMPLES[[5, 2]], 3)
  assert all(whole[place] == ids for place, ids in some.items())
  assert by_place(EXAMPLES, 3, (8, 1)) == whole
  assert by_place(EXAMPLES, 4) != whole


def test_words_are_drawn_as_often_as_they_are_likely():
  """Over several blocks, one of them without any probability."""
  rng = np.random.default_rng(0)
  probabilities = rng.dirichlet(np.full(500, 0.1))
  probabilities[128:256] = 0.0
  probabilities /= probabilities.sum()
  count = 200_000
  ids = np.asarray(draw(jax.random.key(0), jnp.asarray(probabilities, jnp.float32), count))
  found = np.bincount(ids, minlength=500)
  assert not found[probabilities == 0].any()
  expected = count * probabilities
  often = expected > 5
  chi_square = np.sum((found - expected)[often] ** 2 / expected[often])
  # Its mean is the number of words, and its variance twice as much.
  assert abs(chi_square - often.sum()) < 4 * np.sqrt(2 * often.sum())
