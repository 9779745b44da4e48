"""Packing of sequence pairs into rows of a few fixed shapes.

A sequence is an input and its target; both go into the same row. Sequences are dealt out,
longest first, each to the row that is emptiest with it, so that a batch fills a given number
of rows evenly. The few shapes are planned once from the lengths of some batches, and each
batch takes the cheapest that holds it: every host, given the lengths, comes to the same rows
without a word to another.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# The largest planned shape has this much more room than the sample's fullest batch needs.
MARGIN = 1.08

# A shape takes a compilation, and is worth it if it saves this share of the steps' cost.
SAVING = 0.995

# The rows of a batch are levelled by at most so many exchanges: large batches are level anyway.
MOST_EXCHANGES = 100

# (input lengths, target lengths) of the sequences of a batch.
Lengths = tuple[np.ndarray, np.ndarray]

# What rows cost in a step, in any unit, from (rows, input tokens, target tokens) in each.
Costs = Callable[[int, int, int], float]


class RowShape(NamedTuple):
  """Rows of a packed batch, and the tokens that each has room for."""

  rows: int
  input_tokens: int
  target_tokens: int


class Packing(NamedTuple):
  """Which sequences share which row: `members[r]` lists row r's sequences in order."""

  shape: RowShape
  members: list[list[int]]


def aligned_tokens(dtype: str) -> int:
  """What row lengths are best a multiple of: so many numbers of this dtype are 16 bytes.

  Rows of attention's logits that start there are read fastest.
  """
  return {"float32": 4, "bfloat16": 8}[dtype]


def balanced_rows(
  lengths: Lengths, rows: int, length_multiple: int
) -> tuple[RowShape, list[list[int]]]:
  """The sequences dealt out evenly over the rows, and the least shape that holds them.

  Longest first, each sequence goes to the row whose fuller side, inputs or targets as a share
  of the batch's, is smallest with it (the greedy rule for two-dimensional load balancing).
  Then the fullest row exchanges sequences with others for as long as that evens the rows out.
  """
  # A full row of either side counts 1.
  totals = np.maximum([lengths[0].sum(), lengths[1].sum()], 1)
  sizes = np.stack(lengths, axis=1) * rows / totals
  loads = np.zeros((rows, 2))
  row_of = np.zeros(len(sizes), np.int64)
  for sequence in np.argsort(-sizes.max(axis=1), kind="stable"):
    filled = loads + sizes[sequence]
    # Of rows with equally full sides, the one with more room in all.
    row = int(np.lexsort((filled.sum(axis=1), filled.max(axis=1)))[0])
    loads[row] = filled[row]
    row_of[sequence] = row
  row_of = _exchanged(sizes, row_of, rows)
  members = [[int(sequence) for sequence in np.flatnonzero(row_of == row)] for row in range(rows)]
  needed = [max(int(side[row].sum()) for row in members) for side in lengths]
  return _least_shape(rows, needed, length_multiple), members


def _exchanged(sizes: np.ndarray, row_of: np.ndarray, rows: int) -> np.ndarray:
  """The row of each sequence after the exchanges that level the rows.

  The fullest row gives one of its sequences for one of another row, or for nothing, whichever
  lowers the sum of the loads' unevenness most.
  """
  # A sequence of length 0 in each row stands for nothing.
  sizes = np.concatenate([sizes, np.zeros((rows, 2))])
  row_of = np.concatenate([row_of, np.arange(rows)])
  loads = np.zeros((rows, 2))
  np.add.at(loads, row_of, sizes)
  for _ in range(MOST_EXCHANGES):
    given = np.flatnonzero(row_of == np.argmax(loads.max(axis=1)))
    gain = sizes - sizes[given, None]  # of the fullest row, by (given, taken) sequence
    before = loads[row_of]
    after = _unevenness(before[given, None] + gain) + _unevenness(before - gain)
    after -= _unevenness(before[given, None]) + _unevenness(before)
    after[:, row_of == row_of[given[0]]] = 0.0
    i, taken = np.unravel_index(np.argmin(after), after.shape)
    if after[i, taken] > -1e-9:
      break
    ours, other = row_of[given[i]], row_of[taken]
    loads[ours] += gain[i, taken]
    loads[other] -= gain[i, taken]
    row_of[given[i]], row_of[taken] = other, ours
  return row_of[:-rows]


def _unevenness(loads: np.ndarray) -> np.ndarray:
  """Grows fast with the fuller side.

  Products alone, since a power is rounded otherwise on other processors, and hosts must agree.
  """
  squares = loads * loads
  return (squares * squares * squares).sum(axis=-1)


class Packer:
  """Packs batches into the shapes planned for lengths like theirs."""

  def __init__(
    self,
    sample: Sequence[Lengths],
    *,
    costs: Costs,
    row_multiple: int = 1,
    length_multiple: int = 8,
    max_shapes: int = 8,
  ):
    """Plans the shapes.

    Args:
      sample: the lengths of some batches.
      costs: which shapes are cheap.
      row_multiple: rows come in multiples of this (the data axis, times the microbatches).
      length_multiple: row lengths are multiples of this.
      max_shapes: each shape is compiled once, so there are few.
    """
    self._costs = costs
    self._length_multiple = length_multiple
    most = max(len(inputs) for inputs, _ in sample)
    self._row_counts = [row_multiple * n for n in _steps(math.ceil(most / row_multiple))]
    needed = [[self._dealt(lengths, rows)[0] for rows in self._row_counts] for lengths in sample]
    self.shapes = self._plan(needed, max_shapes)

  def pack(self, lengths: Lengths) -> Packing:
    """The batch in the cheapest planned shape that holds it, or in a larger one of its own."""
    dealt: dict[int, tuple[RowShape, list[list[int]]]] = {}
    for shape in self.shapes:
      if shape.rows not in dealt:
        dealt[shape.rows] = self._dealt(lengths, shape.rows)
      needed, members = dealt[shape.rows]
      if _holds(shape, needed):
        return Packing(shape, members)
    rare = []
    for rows in self._row_counts:
      needed, members = self._dealt(lengths, rows)
      # Powers of two, so that rare batches share their few shapes.
      shape = RowShape(rows, *(2 ** math.ceil(math.log2(tokens)) for tokens in needed[1:]))
      rare.append(Packing(shape, members))
    return min(rare, key=lambda packing: self._costs(*packing.shape))

  def _dealt(self, lengths: Lengths, rows: int) -> tuple[RowShape, list[list[int]]]:
    return balanced_rows(lengths, rows, self._length_multiple)

  def _plan(self, needed: list[list[RowShape]], max_shapes: int) -> list[RowShape]:
    """At most max_shapes shapes that hold every batch of the sample cheaply, cheapest first.

    Candidates are the deciles of what the batches need at each number of rows; one that
    holds every batch with a margin is taken first, for the batches that are not in the sample,
    then whichever saves most, as long as it saves 0.5 %.
    """
    candidates: list[RowShape] = []
    holding_all: list[RowShape] = []
    for column, rows in enumerate(self._row_counts):
      inputs = np.sort([shapes[column].input_tokens for shapes in needed])
      targets = np.sort([shapes[column].target_tokens for shapes in needed])
      ranks = [math.ceil(share / 10 * len(needed)) - 1 for share in range(1, 11)]
      for i, j in itertools.product(ranks, ranks):
        candidates.append(RowShape(rows, int(inputs[i]), int(targets[j])))
      margin = [int(tokens * MARGIN) for tokens in (inputs[-1], targets[-1])]
      holding_all.append(_least_shape(rows, margin, self._length_multiple))
    candidates += holding_all
    candidates = sorted(set(candidates), key=lambda shape: self._costs(*shape))
    prices = np.array([self._costs(*shape) for shape in candidates])
    columns = {rows: column for column, rows in enumerate(self._row_counts)}
    holds = np.array(
      [[_holds(shape, shapes[columns[shape.rows]]) for shape in candidates] for shapes in needed]
    )
    price = np.where(holds, prices, np.inf)  # [batches, candidates]
    chosen = [candidates.index(min(holding_all, key=lambda shape: self._costs(*shape)))]
    while len(chosen) < max_shapes:
      candidate, total = _best_with(price, chosen)
      if total > SAVING * price[:, chosen].min(axis=1).sum():
        break
      chosen.append(candidate)
      # With this one, another may be better than some that were chosen before it.
      for place in range(1, len(chosen) - 1):
        others = chosen[:place] + chosen[place + 1 :]
        chosen = [*others[:place], _best_with(price, others)[0], *others[place:]]
    return [candidates[i] for i in sorted(chosen)]


def _best_with(price: np.ndarray, chosen: list[int]) -> tuple[int, float]:
  """The candidate that is best beside the chosen ones, and what all batches then cost."""
  best = price[:, chosen].min(axis=1)
  totals = np.minimum(best[:, None], price).sum(axis=0)
  candidate = int(np.argmin(totals))
  return candidate, float(totals[candidate])


def _steps(last: int) -> list[int]:
  """Numbers up to `last` and with it, so that a row may hold one long sequence, ever further apart.

  From 16 on the gap is an eighth to a quarter of the number.
  """
  steps = list(range(1, 17))
  while steps[-1] < last:
    steps.append(steps[-1] + 2 ** (steps[-1].bit_length() - 3))
  return [step for step in steps if step < last] + [last]


def _holds(shape: RowShape, needed: RowShape) -> bool:
  return needed.input_tokens <= shape.input_tokens and needed.target_tokens <= shape.target_tokens


def _least_shape(rows: int, needed: Sequence[int], length_multiple: int) -> RowShape:
  lengths = [max(math.ceil(tokens / length_multiple), 1) * length_multiple for tokens in needed]
  return RowShape(rows, *lengths)
