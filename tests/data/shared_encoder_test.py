"""A shared encoder: one input of a row, read by its label and by its rationale."""

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest

from dss_jax.config.schema import LABEL, RATIONALE, DataConfig, LossConfig, OnPolicyConfig
from dss_jax.data.batches import BatchLayout, EvalBatches, PackedBatches, TrainBatches, empty_batch
from dss_jax.data.pipeline import prepare
from dss_jax.data.records import write_rows
from dss_jax.data.shared_encoder import check_shared_encoder, start_tokens
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.errors import UserError
from dss_jax.train.evaluation import evaluate
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.step import Trainer, accumulated_gradient

BOTH = (LABEL, RATIONALE)
STARTS = (0, 1)


@pytest.fixture(scope="module")
def store(make_store):
  """Examples whose two inputs are one; some lack a rationale, and one its label."""
  store = make_store(12, seed=5)
  for pair in store.pairs:
    if pair[RATIONALE] is not None:
      pair[RATIONALE] = (pair[LABEL][0], pair[RATIONALE][1])
  store.pairs[4][LABEL] = None
  assert store.pairs[3][RATIONALE] is None
  return store


@pytest.fixture(scope="module")
def packed(store, row_costs):
  return PackedBatches(
    store, kinds=BOTH, planned_for=[np.arange(12)], costs=row_costs, layout=BatchLayout(STARTS)
  )


def targets_of(batch):
  """The (input, decoder input, target, kind) of each target, read back from the arrays."""
  found = []
  for row, segments in enumerate(batch["decoder_segment_ids"]):
    for segment in sorted(set(segments[segments > 0])):
      here = segments == segment
      (source,) = set(batch["decoder_cross_segment_ids"][row][here].tolist())
      (kind,) = set(batch["decoder_target_kinds"][row][here].tolist())
      read = batch["encoder_segment_ids"][row] == source
      found.append(
        (
          tuple(batch["encoder_input_tokens"][row][read].tolist()),
          tuple(batch["decoder_input_tokens"][row][here].tolist()),
          tuple(batch["decoder_target_tokens"][row][here].tolist()),
          kind,
        )
      )
  return sorted(found)


def expected_targets(store, examples):
  return sorted(
    (
      tuple(pair[0].tolist()),
      (STARTS[kind], *pair[1][:-1].tolist()),
      tuple(pair[1].tolist()),
      kind,
    )
    for example in examples
    for kind, pair in enumerate(store.pairs[example])
    if pair is not None
  )


def test_both_targets_read_the_one_input(store, packed):
  packing, sequences = packed.pack(np.arange(12))
  batch = packed.fill(packing, sequences)
  assert targets_of(batch) == expected_targets(store, range(12))
  # Each example's input is there once.
  pairs = [next(pair for pair in both if pair is not None) for both in store.pairs]
  assert np.sum(batch["encoder_segment_ids"] > 0) == sum(len(pair[0]) for pair in pairs)
  inputs = sum(len(set(row[row > 0])) for row in batch["encoder_segment_ids"])
  assert inputs == 12 < len(sequences)


def test_rows_of_one_host_and_padding(packed):
  packing, sequences = packed.pack(np.arange(12))
  whole = packed.fill(packing, sequences)
  rows = [packed.fill(packing, sequences, slice(n, n + 1)) for n in range(packing.shape.rows)]
  for name, array in whole.items():
    np.testing.assert_array_equal(np.concatenate([row[name] for row in rows]), array)
    padding = whole["encoder_segment_ids" if name[0] == "e" else "decoder_segment_ids"] == 0
    assert not array[padding].any()
  empty = empty_batch(packing.shape, BatchLayout(STARTS))
  assert {name: array.shape for name, array in empty.items()} == {
    name: array.shape for name, array in whole.items()
  }


def test_an_example_that_follows_itself_is_encoded_again(store, packed):
  """In a batch that is larger than the data set."""
  packing, sequences = packed.pack(np.array([0, 1, 1, 4, 4, 1]))
  batch = packed.fill(packing, sequences)
  assert targets_of(batch) == expected_targets(store, [0, 1, 1, 4, 4, 1])
  assert sum(len(set(row[row > 0])) for row in batch["encoder_segment_ids"]) == 6


def test_padding_counts_each_input_once(store, row_costs):
  batches = TrainBatches(
    store, batch_size=12, seed=0, kinds=BOTH, costs=row_costs, layout=BatchLayout(STARTS)
  )
  packing, sequences = batches.pack(0)
  batch = batches.packed.fill(packing, sequences)
  shares = batches.packed.padding_shares()
  assert shares["inputs"] == pytest.approx(np.mean(batch["encoder_segment_ids"] == 0))
  assert shares["targets"] == pytest.approx(np.mean(batch["decoder_segment_ids"] == 0))


def apart(store, examples):
  """The same sequences without packing: each target in a row of its own, with its own input."""
  sequences = expected_targets(store, examples)
  shape = (max(len(each[0]) for each in sequences), max(len(each[2]) for each in sequences))
  batch = {
    name: np.zeros((len(sequences), shape[name.startswith("decoder")]), array.dtype)
    for name, array in empty_batch((1, 1, 1)).items()
  }
  for row, (source, inputs, target, kind) in enumerate(sequences):
    batch["encoder_input_tokens"][row, : len(source)] = source
    batch["encoder_segment_ids"][row, : len(source)] = 1
    batch["decoder_input_tokens"][row, : len(target)] = inputs
    batch["decoder_target_tokens"][row, : len(target)] = target
    batch["decoder_segment_ids"][row, : len(target)] = 1
    batch["decoder_loss_weights"][row, : len(target)] = 1.0
    batch["decoder_target_kinds"][row, : len(target)] = kind
  return batch


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.slow
def test_a_packed_batch_has_the_loss_and_gradient_of_sequences_apart(
  store, packed, make_config, random_params, scan_layers
):
  model = {"num_decoder_layers": 2, "scan_layers": scan_layers}
  config = make_config(model=model)
  params = random_params(config.model)
  packing, sequences = packed.pack(np.arange(12))
  batch = packed.fill(packing, sequences)
  assert packing.shape.rows < len(sequences)
  gradient, sums = accumulated_gradient(params, batch, None, config=config)
  expected, expected_sums = accumulated_gradient(
    params, apart(store, range(12)), None, config=config
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), sums, expected_sums)
  difference = jax.tree.map(np.subtract, gradient, expected)
  assert optax.tree.norm(difference) < 1e-4 * optax.tree.norm(expected)
  # Without the segments that are read, the second target of an example would read another's input.
  del batch["decoder_cross_segment_ids"]
  _, other = accumulated_gradient(params, batch, None, config=config)
  assert abs(other["rationale/loss"].total - sums["rationale/loss"].total) > 1e-2


def test_evaluation_tells_the_figures_of_each_target(
  store, make_config, mesh_of, random_params, row_costs
):
  data = dataclasses.replace(make_config().data, shared_encoder=True)
  config = dataclasses.replace(make_config(), data=data)
  params = random_params(config.model)
  trainer = Trainer(config, make_optimizer(config.optimizer, 10), mesh_of(2, 1))
  results = []
  for batch_size in (12, 5):
    batches = EvalBatches(
      store,
      batch_size=batch_size,
      kinds=BOTH,
      costs=row_costs,
      row_multiple=2,
      layout=BatchLayout(STARTS),
    )
    # The program that is lowered ahead for the shape takes these very arrays.
    trainer.lower_eval(batches.shapes()[0])
    results.append(evaluate(trainer, params, batches).sequences)
  assert results[0]["label"].examples.tolist() == [n for n in range(12) if n != 4]
  for kind, pair in itertools.product(("label", "rationale"), [results]):
    np.testing.assert_array_equal(pair[0][kind].examples, pair[1][kind].examples)
    np.testing.assert_allclose(pair[0][kind].loss, pair[1][kind].loss, rtol=1e-4)
    np.testing.assert_array_equal(pair[0][kind].tokens, pair[1][kind].tokens)


def test_the_tokens_of_rows(tmp_path):
  """Both inputs are `predict: x`, also of a row that has a rationale alone."""
  rows = [
    {"input_text": "a", "output_text": "b", "rationale": "c"},
    {"input_text": "d", "rationale": "e"},
  ]
  write_rows(tmp_path / "train.jsonl", rows)
  config = DataConfig(dataset=str(tmp_path / "train.jsonl"), vocabulary="bytes")
  shared = dataclasses.replace(config, shared_encoder=True)
  vocabulary = load_vocabulary("bytes")
  data = prepare(shared, BOTH)
  for example, text in enumerate("ad"):
    ids = data.train.input_tokens(example, RATIONALE).tolist()
    assert ids == [*vocabulary.encode(f"predict: {text}"), vocabulary.eos_id]
  apart = prepare(config, BOTH)
  assert apart.train.fingerprint != data.train.fingerprint
  explained = apart.train.input_tokens(1, RATIONALE).tolist()
  assert explained == [*vocabulary.encode("explain: d"), vocabulary.eos_id]
  assert start_tokens(shared, vocabulary) == (vocabulary.pad_id, vocabulary.eos_id)
  assert start_tokens(config, vocabulary) == (vocabulary.pad_id, vocabulary.pad_id)


@pytest.mark.parametrize(("alpha", "kind"), [(1.0, "label"), (0.0, "rationale")])
def test_one_target_shares_nothing(make_config, alpha, kind):
  config = make_config(loss=LossConfig(alpha=alpha))
  check_shared_encoder(config)
  data = dataclasses.replace(config.data, shared_encoder=True)
  with pytest.raises(UserError, match=rf"with --alpha {alpha:g} a row has its {kind} alone"):
    check_shared_encoder(dataclasses.replace(config, data=data))


def test_sampled_targets_share_nothing(make_config):
  config = make_config(on_policy=OnPolicyConfig(share=0.5))
  check_shared_encoder(config)
  data = dataclasses.replace(config.data, shared_encoder=True)
  check_shared_encoder(dataclasses.replace(make_config(), data=data))
  with pytest.raises(UserError, match="--shared-encoder: --kind on-policy encodes an input for"):
    check_shared_encoder(dataclasses.replace(config, data=data))
