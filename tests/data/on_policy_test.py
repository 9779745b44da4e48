"""Which steps sample their targets, and batches of sampled targets read back from their arrays."""

import numpy as np
import pytest

from dss_jax.data.batches import TrainBatches
from dss_jax.data.on_policy import MAX_SHAPES, OnPolicyBatches, SampledTargets, is_on_policy

EOS_ID = 1
T = 10
BATCH_SIZE = 6
ROW_MULTIPLE = 2


def chosen(share, seed=0, steps=2000):
  return [step for step in range(steps) if is_on_policy(step, share=share, seed=seed)]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_of_steps(share):
  spread = np.sqrt(share * (1 - share) / 2000)
  assert abs(len(chosen(share)) / 2000 - share) < 4 * spread


def test_none_and_all():
  assert chosen(0.0) == []
  assert len(chosen(1.0)) == 2000


def test_a_step_depends_on_seed_and_step_alone():
  first = chosen(0.5)
  assert [step for step in first if not is_on_policy(step, share=0.5, seed=0)] == []
  assert chosen(0.5, seed=1) != first
  assert set(chosen(0.2)) < set(first)
  # Steps are drawn apart from each other.
  after = np.mean([is_on_policy(step + 1, share=0.5, seed=0) for step in first])
  assert abs(after - 0.5) < 0.07


def test_the_chosen_steps_are_these():
  """Numbers to hold on to: a change of them would change every run that is resumed."""
  assert chosen(0.3, steps=20) == [3, 8, 11, 16, 17, 18]


@pytest.fixture(scope="module")
def store(make_store):
  return make_store(30)


@pytest.fixture(scope="module")
def make_batches(store, row_costs):
  def make_batches(kinds=(0, 1), **settings):
    train = TrainBatches(
      store, batch_size=BATCH_SIZE, seed=0, kinds=(0, 1), costs=row_costs, **settings
    )
    return OnPolicyBatches(
      store, train, kinds=kinds, max_tokens=T, costs=row_costs, row_multiple=ROW_MULTIPLE
    )

  return make_batches


@pytest.fixture(scope="module")
def batches(make_batches):
  return make_batches()


def sampled(sequences, lengths, seed=0):
  """Targets of given lengths, each with an end token but those of the full length."""
  rng = np.random.default_rng(seed)
  tokens_BT = np.zeros((len(sequences) + 1, T), np.int32)
  for row, length in enumerate(lengths):
    tokens_BT[row, :length] = rng.integers(2, 128, length)
    if length < T:
      tokens_BT[row, length - 1] = EOS_ID
  return SampledTargets.of(sequences, tokens_BT, EOS_ID)


def test_targets_end_with_their_end_token_or_where_they_were_cut_off():
  tokens_BT = np.array([[5, 1, 0, 0], [1, 0, 0, 0], [5, 6, 7, 8], [0, 5, 1, 0], [0, 0, 0, 0]])
  targets = SampledTargets.of([(3, 0), (4, 0), (3, 1), (9, 1)], tokens_BT, EOS_ID)
  # A pad token may be sampled like any other.
  assert [each.tolist() for each in targets.targets] == [[5, 1], [1], [5, 6, 7, 8], [0, 5, 1]]
  assert targets.figures() == {"ended": 0.75, "empty": 0.25, "cut_off": 0.25, "target_tokens": 2.5}


def read_back(batch):
  """(input, target, kind) of each segment, with what the decoder sees checked."""
  found = []
  for row, segments in enumerate(batch["decoder_segment_ids"]):
    for segment in range(1, segments.max() + 1):
      here = segments == segment
      target = batch["decoder_target_tokens"][row][here].tolist()
      assert batch["decoder_input_tokens"][row][here].tolist() == [0, *target[:-1]]
      (kind,) = set(batch["decoder_target_kinds"][row][here].tolist())
      source = batch["encoder_segment_ids"][row] == segment
      found.append((batch["encoder_input_tokens"][row][source].tolist(), target, kind))
  np.testing.assert_array_equal(batch["decoder_loss_weights"], batch["decoder_segment_ids"] > 0)
  return sorted(found)


@pytest.mark.parametrize("longest", [1, 4, T])
def test_the_arrays_decode_back_to_the_samples(store, batches, longest):
  sequences = batches.sequences(3)
  assert {kind for _, kind in sequences} == {0, 1}
  lengths = np.random.default_rng(0).integers(1, longest + 1, len(sequences))
  targets = sampled(sequences, lengths)
  packing = batches.pack(targets)
  assert packing.shape.rows % ROW_MULTIPLE == 0
  assert read_back(batches.fill(packing, targets)) == sorted(
    (store.input_tokens(example, kind).tolist(), target.tolist(), kind)
    for (example, kind), target in zip(sequences, targets.targets, strict=True)
  )


def test_parts_filled_apart_are_the_whole(batches):
  sequences = batches.sequences(0)
  targets = sampled(sequences, [4] * len(sequences))
  packing = batches.pack(targets)
  whole = batches.fill(packing, targets)
  parts = [batches.fill(packing, targets, slice(row, row + 1)) for row in range(packing.shape.rows)]
  for name, array in whole.items():
    np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


def test_shapes_are_few_whatever_is_sampled(batches):
  rng = np.random.default_rng(0)
  shapes = set()
  for step in range(200):
    sequences = batches.sequences(step)
    lengths = rng.integers(1, rng.integers(1, T + 1) + 1, len(sequences))
    shapes.add(batches.pack(sampled(sequences, lengths)).shape)
  full = sampled(sequences, [T] * len(sequences))
  shapes.add(batches.pack(full).shape)
  assert 1 < len(shapes) <= MAX_SHAPES


def test_inputs_stand_one_in_a_row(store, batches):
  sequences = batches.sequences(0)
  inputs = batches.inputs(sequences, rows=2 * BATCH_SIZE, length=24)
  assert inputs.shape == (2 * BATCH_SIZE, 24)
  for row, (example, kind) in zip(inputs, sequences, strict=False):
    tokens = store.input_tokens(example, kind)
    assert row.tolist() == [*tokens, *[0] * (24 - len(tokens))]
  assert not inputs[len(sequences) :].any()


def test_a_sample_has_the_weight_of_its_example(make_batches):
  weights = np.arange(1, 31, dtype=np.float32)
  batches = make_batches(example_weights=weights)
  sequences = batches.sequences(0)
  samples = sampled(sequences, [3] * len(sequences))
  packing = batches.pack(samples)
  loss_weights = batches.fill(packing, samples)["decoder_loss_weights"]
  assert sorted(loss_weights[loss_weights > 0]) == sorted(
    weights[example] for example, _ in sequences for _ in range(3)
  )


def test_one_kind_alone(make_batches, batches):
  rationales = make_batches(kinds=(1,))
  of_both = batches.sequences(2)
  assert rationales.sequences(2) == [each for each in of_both if each[1] == 1]
  targets = sampled(rationales.sequences(2), [3] * len(rationales.sequences(2)))
  batch = rationales.fill(rationales.pack(targets), targets)
  assert set(batch["decoder_target_kinds"][batch["decoder_segment_ids"] > 0]) == {1}


def test_an_example_that_a_step_has_twice(store, row_costs):
  train = TrainBatches(store, batch_size=40, seed=0, kinds=(0,), costs=row_costs)
  batches = OnPolicyBatches(store, train, kinds=(0,), max_tokens=T, costs=row_costs)
  sequences = batches.sequences(0)
  assert len(set(sequences)) < len(sequences) == 40
  lengths = [1 + example % T for example, _ in sequences]
  targets = sampled(sequences, lengths)
  assert len(read_back(batches.fill(batches.pack(targets), targets))) == 40
