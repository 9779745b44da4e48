"""Packing: every sequence once, no row too full, few shapes, cheap ones, the same everywhere."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dss_jax.data import packing
from dss_jax.data.packing import Packer, RowShape


def costs(rows, inputs, targets):
  """Tokens, and attention that makes long rows dear."""
  return rows * (inputs + 2 * targets + 1e-3 * (inputs**2 + targets**2 + inputs * targets))


def balanced_rows(batch, rows):
  return packing.balanced_rows(batch, rows, length_multiple=8)


def lengths(inputs, targets):
  return np.array(inputs), np.array(targets)


def batches(count, sequences, *, longest_input=120, seed=0):
  """Half short targets (labels), half long ones (rationales)."""
  rng = np.random.default_rng(seed)
  short = np.arange(sequences) < sequences // 2
  return [
    lengths(
      rng.integers(20, longest_input + 1, sequences),
      np.where(short, rng.integers(2, 6, sequences), rng.integers(20, 90, sequences)),
    )
    for _ in range(count)
  ]


def assert_packed(packing, batch):
  """Every sequence exactly once, and room for what each row holds."""
  inputs, targets = batch
  shape, members = packing
  assert len(members) == shape.rows
  assert sorted(itertools.chain(*members)) == list(range(len(inputs)))
  for row in members:
    assert inputs[row].sum() <= shape.input_tokens
    assert targets[row].sum() <= shape.target_tokens


def test_balanced_rows_by_hand():
  """Longest first, over two rows: 40 | 30, then 40 | 30 20, then 40 10 | 30 20."""
  shape, members = balanced_rows(lengths([10, 40, 20, 30], [1, 4, 2, 3]), 2)
  assert members == [[0, 1], [2, 3]]
  assert shape == RowShape(2, 56, 8)  # 50 and 5, up to a multiple of 8


def test_rows_are_levelled_by_exchanges():
  """Longest first gives 50 40 | 50 30 30; a 50 for a 40 makes both rows alike."""
  shape, members = balanced_rows(lengths([50, 50, 40, 30, 30], [1, 1, 1, 1, 1]), 2)
  assert shape == RowShape(2, 104, 8)  # 100, up to a multiple of 8
  assert sorted(map(len, members)) == [2, 3]


def test_the_next_fullest_row_exchanges_where_the_fullest_cannot(monkeypatch):
  """The fullest holds the 70 alone; the next, of 60 and 40 targets, gives a 40 for a 20."""
  batch = lengths([10, 20, 10, 30, 70], [40, 60, 40, 20, 70])
  assert packing.balanced_rows(batch, 3, length_multiple=1)[0] == RowShape(3, 70, 80)
  monkeypatch.setattr(packing, "EXCHANGE_ROWS", 1)
  assert packing.balanced_rows(batch, 3, length_multiple=1)[0] == RowShape(3, 70, 100)


def test_both_sides_are_balanced():
  """Two sequences of long inputs and two of long targets: one of each in a row."""
  shape, members = balanced_rows(lengths([80, 80, 8, 8], [8, 8, 80, 80]), 2)
  assert shape == RowShape(2, 88, 88)
  assert sorted(sorted(row) for row in members) in ([[0, 2], [1, 3]], [[0, 3], [1, 2]])


def test_one_row_takes_all_and_many_rows_one_each():
  batch = lengths([3, 4, 5], [1, 2, 3])
  assert balanced_rows(batch, 1)[0] == RowShape(1, 16, 8)
  shape, members = balanced_rows(batch, 5)
  assert shape == RowShape(5, 8, 8)
  assert sorted(len(row) for row in members) == [0, 0, 1, 1, 1]


pairs = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=30)


def unzip(batch):
  return lengths(*zip(*batch, strict=True))


@given(batch=pairs, rows=st.integers(1, 12))
def test_balanced_rows_hold_every_sequence_once_in_the_least_shape(batch, rows):
  inputs, targets = unzip(batch)
  shape, members = balanced_rows((inputs, targets), rows)
  assert_packed((shape, members), (inputs, targets))
  for side, tokens in ((inputs, shape.input_tokens), (targets, shape.target_tokens)):
    fullest = max(side[row].sum() for row in members)
    assert tokens % 8 == 0
    assert tokens - 8 < max(fullest, 1) <= tokens


@settings(max_examples=40)
@given(
  sample=st.lists(pairs, min_size=1, max_size=5),
  other=st.lists(pairs, min_size=1, max_size=3),
  row_multiple=st.integers(1, 8),
)
def test_any_batch_is_packed_whole(sample, other, row_multiple):
  """Batches of the sample into planned shapes, others too or into larger ones of their own."""
  packer = Packer([unzip(each) for each in sample], costs=costs, row_multiple=row_multiple)
  assert 1 <= len(packer.shapes) <= 6
  for batch in map(unzip, sample):
    packing = packer.pack(batch)
    assert_packed(packing, batch)
    assert packing.shape in packer.shapes
  for batch in map(unzip, other):
    packing = packer.pack(batch)
    assert_packed(packing, batch)
    assert packing.shape.rows % row_multiple == 0
    if packing.shape not in packer.shapes:
      assert all(tokens & (tokens - 1) == 0 for tokens in packing.shape[1:])


@pytest.mark.parametrize("row_multiple", [1, 8, 24])
def test_shapes_are_few_and_their_rows_divide(row_multiple):
  sample = batches(64, 48)
  packer = Packer(sample, costs=costs, row_multiple=row_multiple, max_shapes=3)
  used = {packer.pack(batch).shape for batch in sample}
  assert used <= set(packer.shapes)
  assert len(packer.shapes) <= 3
  assert all(shape.rows % row_multiple == 0 for shape in packer.shapes)


def test_batches_like_the_sample_find_a_planned_shape():
  packer = Packer(batches(64, 48), costs=costs)
  others = [packer.pack(batch).shape for batch in batches(200, 48, seed=1)]
  assert np.mean([shape in packer.shapes for shape in others]) >= 0.98


def test_packing_costs_much_less_than_a_row_a_sequence():
  sample = batches(64, 48)
  packer = Packer(sample, costs=costs)
  packed = np.mean([costs(*packer.pack(batch).shape) for batch in sample])
  assert packed < 0.65 * costs(48, 120, 96)


@pytest.mark.parametrize("sequences", [50, 129, 256])
def test_long_sequences_get_a_row_each_whatever_the_batch(sequences):
  """Attention in longer rows would cost more than the padding that they save."""
  inputs = np.full(sequences, 4000)
  packer = Packer([(inputs, np.full(sequences, 8))], costs=costs)
  assert packer.pack((inputs, np.full(sequences, 8))).shape == RowShape(sequences, 4000, 8)


def test_the_cheapest_planned_shape_that_holds_a_batch_is_taken():
  sample = batches(64, 48)
  packer = Packer(sample, costs=costs)
  prices = [costs(*shape) for shape in packer.shapes]
  assert prices == sorted(prices)
  assert len(packer.shapes) > 1
  for batch in sample:
    chosen = packer.pack(batch).shape
    for shape in packer.shapes[: packer.shapes.index(chosen)]:
      needed = balanced_rows(batch, shape.rows)[0]
      assert needed.input_tokens > shape.input_tokens or needed.target_tokens > shape.target_tokens


def test_more_shapes_cost_no_more():
  sample = batches(64, 48)

  def cost(max_shapes):
    packer = Packer(sample, costs=costs, max_shapes=max_shapes)
    return sum(costs(*packer.pack(batch).shape) for batch in sample)

  assert cost(6) < cost(1)


def short_targets(count):
  """Targets a seventh as long as the inputs, their sum of more varied size."""
  rng = np.random.default_rng(0)
  short = np.arange(48) < 24
  return [
    lengths(
      rng.integers(40, 90, 48),
      np.where(short, rng.integers(2, 6, 48), rng.integers(3, 30, 48)),
    )
    for _ in range(count)
  ]


def padding_and_cost(sample):
  """The padding shares of inputs and targets, and what the sample costs."""

  def cheap_pairs(rows, inputs, targets):
    return rows * (inputs + 2 * targets + 3e-4 * (inputs**2 + targets**2 + inputs * targets))

  packer = Packer(sample, costs=cheap_pairs, length_multiple=4)
  shapes = [packer.pack(batch).shape for batch in sample]
  tokens = np.sum([[side.sum() for side in batch] for batch in sample], axis=0)
  room = np.sum([[rows * inputs, rows * targets] for rows, inputs, targets in shapes], axis=0)
  return 1 - tokens / room, sum(cheap_pairs(*shape) for shape in shapes)


def test_short_targets_are_not_padded_for_the_inputs_sake(monkeypatch):
  sample = short_targets(48)
  padding, cost = padding_and_cost(sample)
  assert np.all(padding < packing.MOST_PADDING)
  monkeypatch.setattr(packing, "ROOM_WEIGHTS", (0.0,))
  by_cost_alone, least_cost = padding_and_cost(sample)
  assert by_cost_alone[1] > 0.09
  assert cost < 1.005 * least_cost


@pytest.mark.parametrize("limit", ["MOST_PADDING", "MOST_COST"])
def test_cost_alone_decides_where_less_padding_is_not_to_be_had_or_too_dear(monkeypatch, limit):
  sample = short_targets(48)
  monkeypatch.setattr(packing, limit, 0.0)
  padding, cost = padding_and_cost(sample)
  monkeypatch.setattr(packing, "ROOM_WEIGHTS", (0.0,))
  by_cost_alone, least_cost = padding_and_cost(sample)
  assert cost == least_cost
  assert padding.tolist() == by_cost_alone.tolist()


@pytest.fixture
def dealt(monkeypatch):
  """The numbers of rows that batches are dealt over from now on."""
  counts = []
  deal = packing.balanced_rows

  def counted(batch, rows, length_multiple):
    counts.append(rows)
    return deal(batch, rows, length_multiple)

  monkeypatch.setattr(packing, "balanced_rows", counted)
  return counts


def test_numbers_of_rows_that_cost_much_are_left_out_and_change_no_shape(monkeypatch, dealt):
  sample = batches(32, 48)
  found = Packer(sample, costs=costs).shapes
  few = len(dealt)
  monkeypatch.setattr(packing, "TRIED_COST", np.inf)
  assert found == Packer(sample, costs=costs).shapes
  assert few < 0.7 * (len(dealt) - few)


def test_a_batch_is_dealt_for_shapes_with_room_for_it_alone(dealt):
  sample = batches(32, 48)
  packer = Packer(sample, costs=costs)
  dealt.clear()
  for batch in sample:
    packer.pack(batch)
    inputs, targets = (side.sum() for side in batch)
    with_room = {
      shape.rows
      for shape in packer.shapes
      if inputs <= shape.rows * shape.input_tokens and targets <= shape.rows * shape.target_tokens
    }
    assert set(dealt) <= with_room
    dealt.clear()


def test_a_batch_too_long_for_all_shapes_gets_one_that_others_like_it_share():
  packer = Packer(batches(64, 48), costs=costs, row_multiple=4)
  rare = []
  for longest in (3000, 3100, 3300, 3500, 3900):
    batch = lengths([longest, *[30] * 47], [5] * 48)
    packing = packer.pack(batch)
    assert_packed(packing, batch)
    assert packing.shape not in packer.shapes
    rare.append(packing.shape)
  assert len(set(rare)) == 1
  assert rare[0].rows % 4 == 0


def test_every_host_comes_to_the_same_packing():
  sample = batches(20, 48)
  one, other = (Packer(sample, costs=costs, row_multiple=2) for _ in range(2))
  assert one.shapes == other.shapes
  for batch in batches(20, 48, seed=1):
    assert one.pack(batch) == other.pack(batch)


def test_a_batch_smaller_than_the_row_multiple_leaves_rows_empty():
  packer = Packer([lengths([5, 6], [2, 2])], costs=costs, row_multiple=8)
  packing = packer.pack(lengths([5, 6], [2, 2]))
  assert packing.shape.rows == 8
  assert_packed(packing, lengths([5, 6], [2, 2]))
