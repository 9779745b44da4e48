"""Batches: step n as a pure function of (seed, n), and arrays that decode back to the sequences."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dss_jax.data.batches import (
  BatchLayout,
  EvalBatches,
  PackedBatches,
  TargetFeature,
  TrainBatches,
  empty_batch,
  example_numbers,
  usable_examples,
)

BOTH = (0, 1)


def costs(rows, inputs, targets):
  return rows * (inputs + 2 * targets + 1e-3 * (inputs + targets) ** 2)


@dataclasses.dataclass
class Pairs:
  """A store in memory: of each example and task an (input, target) pair, or None."""

  pairs: list

  def _lengths(self, side):
    return np.array(
      [[0 if pair is None else len(pair[side]) for pair in row] for row in self.pairs]
    )

  @property
  def input_lengths(self):
    return self._lengths(0)

  @property
  def target_lengths(self):
    return self._lengths(1)

  def input_tokens(self, example, task):
    return self.pairs[example][task][0]

  def target_tokens(self, example, task):
    return self.pairs[example][task][1]


def make_store(examples, *, seed=0, without_rationale=3):
  """Every so many examples lack a rationale; one lacks both, one the label alone."""
  rng = np.random.default_rng(seed)

  def pair(longest_target):
    lengths = rng.integers(3, 30), rng.integers(2, longest_target)
    return tuple(rng.integers(2, 100, length).astype(np.int32) for length in lengths)

  pairs = [
    [pair(5), None if number % without_rationale == 0 else pair(25)] for number in range(examples)
  ]
  pairs[1][0] = None
  pairs[2] = [None, None]
  return Pairs(pairs)


STORE = make_store(50)


def sequences_of(batch):
  """The (input, target, task) triples that a batch's arrays hold, read back from segments."""
  found = []
  for row in range(len(batch["encoder_segment_ids"])):
    encoder, decoder = batch["encoder_segment_ids"][row], batch["decoder_segment_ids"][row]
    assert set(encoder[encoder > 0]) == set(decoder[decoder > 0])
    for segment in sorted(set(encoder[encoder > 0])):
      for ids in (encoder, decoder):  # a segment is contiguous
        places = np.flatnonzero(ids == segment)
        assert np.array_equal(places, np.arange(places[0], places[-1] + 1))
      kinds = set(batch["decoder_target_kinds"][row][decoder == segment])
      assert len(kinds) == 1
      found.append(
        (
          tuple(batch["encoder_input_tokens"][row][encoder == segment].tolist()),
          tuple(batch["decoder_target_tokens"][row][decoder == segment].tolist()),
          int(kinds.pop()),
        )
      )
  return sorted(found)


def sequences_in(store, examples, kinds=BOTH):
  return sorted(
    (tuple(pair[0].tolist()), tuple(pair[1].tolist()), task)
    for example in examples
    for task in kinds
    if (pair := store.pairs[example][task]) is not None
  )


def packed_batches(store=STORE, *, kinds=BOTH, row_multiple=1, batch_size=12):
  examples = usable_examples(store, kinds)
  groups = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
  return PackedBatches(
    store, kinds=kinds, planned_for=groups, costs=costs, row_multiple=row_multiple
  )


@given(
  num_examples=st.integers(1, 40),
  batch_size=st.integers(1, 50),
  seed=st.integers(0, 2**32 - 1),
  first_step=st.integers(0, 100),
)
def test_every_epoch_is_a_permutation(num_examples, batch_size, seed, first_step):
  """Also where a batch runs over an epoch's end, or over several."""
  steps = -(-3 * num_examples // batch_size) + 1
  stream = np.concatenate(
    [
      example_numbers(step, batch_size=batch_size, num_examples=num_examples, seed=seed)
      for step in range(first_step, first_step + steps)
    ]
  )
  start = -(first_step * batch_size) % num_examples
  for epoch in range(2):
    part = stream[start + epoch * num_examples :][:num_examples]
    assert sorted(part) == list(range(num_examples))


def test_epochs_and_seeds_differ():
  def first_epoch(seed):
    return example_numbers(0, batch_size=50, num_examples=50, seed=seed)

  assert not np.array_equal(first_epoch(0), first_epoch(1))
  assert not np.array_equal(first_epoch(0), np.arange(50))
  second = example_numbers(1, batch_size=50, num_examples=50, seed=0)
  assert not np.array_equal(first_epoch(0), second)


def test_a_step_s_examples_depend_on_seed_and_step_alone():
  def numbers(step):
    return example_numbers(step, batch_size=24, num_examples=100, seed=7).tolist()

  forwards = [numbers(step) for step in range(40)]
  assert [numbers(step) for step in reversed(range(40))] == forwards[::-1]


def test_the_examples_of_a_step_are_these():
  """Numbers to hold on to: a change of them would change every run that is resumed."""
  got = example_numbers(2, batch_size=4, num_examples=10, seed=0)
  assert got.tolist() == [2, 4, 9, 4]


@pytest.mark.parametrize("row_multiple", [1, 4])
def test_the_arrays_decode_back_to_the_sequences(row_multiple):
  packed = packed_batches(row_multiple=row_multiple)
  examples = np.array([0, 1, 3, 4, 5, 6, 7, 8, 30, 31, 32, 33])
  packing, sequences = packed.pack(examples)
  assert packing.shape.rows % row_multiple == 0
  batch = packed.fill(packing, sequences)
  assert sequences_of(batch) == sequences_in(STORE, examples)
  assert len(sequences) == len(sequences_in(STORE, examples))


def test_the_fields_of_a_batch():
  packed = packed_batches()
  packing, sequences = packed.pack(np.arange(12))
  batch = packed.fill(packing, sequences)
  rows, inputs, targets = packing.shape
  int32, float32 = np.dtype("int32"), np.dtype("float32")
  assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
    "encoder_input_tokens": ((rows, inputs), int32),
    "encoder_segment_ids": ((rows, inputs), int32),
    "decoder_input_tokens": ((rows, targets), int32),
    "decoder_target_tokens": ((rows, targets), int32),
    "decoder_segment_ids": ((rows, targets), int32),
    "decoder_loss_weights": ((rows, targets), float32),
    "decoder_target_kinds": ((rows, targets), int32),
  }
  assert {name: array.shape for name, array in empty_batch(packing.shape).items()} == {
    name: array.shape for name, array in batch.items()
  }


def test_sequence_ids_say_which_example_and_kind_a_position_belongs_to():
  store, examples = make_store(6), np.array([3, 0, 1, 3, 4])
  packed = PackedBatches(
    store,
    kinds=BOTH,
    planned_for=[examples],
    costs=costs,
    row_multiple=2,
    layout=BatchLayout(sequence_ids=True),
  )
  packing, sequences = packed.pack(examples)
  batch = packed.fill(packing, sequences)
  # Example 1 has no label; the second copy of example 3 is the same sequence.
  places = {example: place for place, example in enumerate([3, 0, 4, 1])}
  for row, members in enumerate(packing.members):
    for segment, number in enumerate(members, start=1):
      example, kind = sequences[number]
      for stack in ("encoder", "decoder"):
        here = batch[f"{stack}_segment_ids"][row] == segment
        assert set(batch[f"{stack}_sequence_ids"][row][here]) == {1 + 2 * places[example] + kind}
  for stack in ("encoder", "decoder"):
    ids, segments = batch[f"{stack}_sequence_ids"], batch[f"{stack}_segment_ids"]
    assert np.array_equal(ids > 0, segments > 0)
  assert batch.keys() == empty_batch(packing.shape, BatchLayout(sequence_ids=True)).keys()
  # A host that fills other rows gives them the same numbers.
  last = packed.fill(packing, sequences, slice(1, 2))
  assert np.array_equal(last["decoder_sequence_ids"], batch["decoder_sequence_ids"][1:2])


def test_decoder_inputs_are_the_targets_shifted_within_their_segment():
  packed = packed_batches()
  batch = packed.fill(*packed.pack(np.arange(12)))
  starts = 0
  for row in range(len(batch["decoder_segment_ids"])):
    previous_segment, previous_target = 0, 0
    for segment, shifted, target in zip(
      batch["decoder_segment_ids"][row],
      batch["decoder_input_tokens"][row],
      batch["decoder_target_tokens"][row],
      strict=True,
    ):
      starts += segment != previous_segment and segment > 0
      assert shifted == (previous_target if segment == previous_segment else 0)
      previous_segment, previous_target = segment, target
  assert starts == len(sequences_in(STORE, np.arange(12)))


def test_padding_carries_nothing():
  packed = packed_batches(row_multiple=4)
  batch = packed.fill(*packed.pack(np.arange(12)))
  real = batch["decoder_segment_ids"] > 0
  assert not real.all()
  np.testing.assert_array_equal(batch["decoder_loss_weights"], real)
  for name, array in batch.items():
    padding = batch["encoder_segment_ids"] == 0 if name.startswith("encoder") else ~real
    assert not array[padding].any()


def test_parts_filled_apart_are_the_whole():
  """Hosts fill the rows of their own devices."""
  packed = packed_batches(row_multiple=4)
  packing, sequences = packed.pack(np.arange(12))
  whole = packed.fill(packing, sequences)
  rows = packing.shape.rows
  parts = [packed.fill(packing, sequences, slice(i, i + 2)) for i in range(0, rows, 2)]
  for name, array in whole.items():
    np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


@pytest.mark.parametrize("kinds", [(0,), (1,), BOTH])
def test_only_the_given_tasks_are_seen(kinds):
  packed = packed_batches(kinds=kinds)
  examples = usable_examples(STORE, kinds)[:12]
  batch = packed.fill(*packed.pack(examples))
  assert sequences_of(batch) == sequences_in(STORE, examples, kinds)
  real = batch["decoder_segment_ids"] > 0
  assert set(batch["decoder_target_kinds"][real]) == set(kinds)


def test_usable_examples_have_a_pair_of_one_of_the_tasks():
  assert usable_examples(STORE, BOTH).tolist() == [0, 1, *range(3, 50)]
  assert usable_examples(STORE, (0,)).tolist() == [0, *range(3, 50)]
  assert 3 not in usable_examples(STORE, (1,))


def test_padding_shares_by_hand():
  store = Pairs([[(np.arange(2, 12), np.arange(2, 5)), None]] * 4)
  packed = PackedBatches(store, kinds=(0,), planned_for=[np.arange(4)], costs=costs)
  packing, _ = packed.pack(np.arange(4))
  rows, inputs, targets = packing.shape
  shares = packed.padding_shares()
  assert shares["inputs"] == pytest.approx(1 - 40 / (rows * inputs))
  assert shares["targets"] == pytest.approx(1 - 12 / (rows * targets))
  again, _ = packed.pack(np.arange(2))
  positions = rows * inputs + again.shape.rows * again.shape.input_tokens
  assert packed.padding_shares()["inputs"] == pytest.approx(1 - 60 / positions)


def test_padding_shares_before_any_batch():
  assert packed_batches().padding_shares() == {"inputs": 0.0, "targets": 0.0}


@pytest.fixture(scope="module")
def train():
  return TrainBatches(STORE, batch_size=16, seed=3, kinds=BOTH, costs=costs, row_multiple=2)


def test_an_epoch_of_training_batches_sees_every_sequence_once(train):
  """49 usable examples and batches of 16: 49 steps are 16 epochs, which end within a step."""
  seen = collections.Counter()
  for step in range(49):
    packing, sequences = train.pack(step)
    assert sorted(itertools.chain(*packing.members)) == list(range(len(sequences)))
    seen.update(sequences)
  assert set(seen.values()) == {16}
  assert len(seen) == len(sequences_in(STORE, range(50)))


def test_training_batches_are_the_same_for_every_host_and_after_a_resume(train):
  other = TrainBatches(STORE, batch_size=16, seed=3, kinds=BOTH, costs=costs, row_multiple=2)
  assert other.pack(30) == train.pack(30)
  assert other.packed.packer.shapes == train.packed.packer.shapes
  another_seed = TrainBatches(STORE, batch_size=16, seed=4, kinds=BOTH, costs=costs)
  assert another_seed.pack(30)[1] != train.pack(30)[1]


def test_a_batch_is_a_number_of_examples_whatever_the_packing(train):
  for step in range(10):
    _, sequences = train.pack(step)
    labels = [example for example, task in sequences if task == 0]
    assert len(labels) in (15, 16)  # one example has no label


def test_a_batch_larger_than_the_data_set_repeats_it():
  train = TrainBatches(make_store(5), batch_size=12, seed=0, kinds=(0,), costs=costs)
  _, sequences = train.pack(0)
  assert sorted(example for example, _ in sequences) == sorted([0, 3, 4] * 4)


@pytest.mark.parametrize("batch_size", [7, 49, 100])
def test_evaluation_sees_every_sequence_once(batch_size):
  batches = EvalBatches(STORE, batch_size=batch_size, kinds=BOTH, costs=costs, row_multiple=4)
  seen = []
  for packing, sequences in batches.packs:
    assert packing.shape.rows % 4 == 0
    assert packing.shape in batches.packed.packer.shapes
    seen += sequences_of(batches.packed.fill(packing, sequences))
  assert sorted(seen) == sequences_in(STORE, range(50))


def test_the_shapes_of_coming_batches_are_told_in_their_order():
  train = TrainBatches(STORE, batch_size=16, seed=3, kinds=BOTH, costs=costs)
  shares = train.packed.padding_shares()
  shapes = train.shapes(range(2, 20))
  assert train.packed.padding_shares() == shares  # To tell is not to use.
  assert shapes == list(dict.fromkeys(train.pack(step)[0].shape for step in range(2, 20)))
  assert len(shapes) > 1
  assert train.shapes([]) == []
  evaluation = EvalBatches(STORE, batch_size=16, kinds=BOTH, costs=costs)
  assert evaluation.shapes() == list(dict.fromkeys(each.shape for each, _ in evaluation.packs))


def test_features_stand_at_their_targets():
  """Each position has its example, kind and place; padding is 0; the rest is as without them."""
  store = make_store(12)
  examples = usable_examples(store, BOTH)

  def places(example, kind):
    length = store.target_lengths[example, kind]
    return np.stack([np.full(length, example), np.full(length, kind), np.arange(length)], axis=1)

  features = [TargetFeature("places", (3,), np.dtype(np.uint16), places)]
  made = {"kinds": BOTH, "planned_for": [examples], "costs": costs}
  with_places, without = (
    PackedBatches(store, **made, layout=BatchLayout(features=features)),
    PackedBatches(store, **made),
  )
  packing, sequences = with_places.pack(examples)
  batch, plain = with_places.fill(packing, sequences), without.fill(packing, sequences)
  found = batch.pop("places")
  assert found.dtype == np.uint16
  assert batch.keys() == plain.keys()
  for name in plain:
    np.testing.assert_array_equal(batch[name], plain[name], strict=True)
  is_real = batch["decoder_segment_ids"] > 0
  assert not np.any(found[~is_real])
  for (example, kind, place), token in zip(
    found[is_real], batch["decoder_target_tokens"][is_real], strict=True
  ):
    assert store.target_tokens(example, kind)[place] == token
  half = with_places.fill(packing, sequences, slice(0, 1))
  np.testing.assert_array_equal(half["places"], found[:1])
