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

# A shape takes a compilation, and is worth it if it brings the steps' price down to this share.
SAVING = 0.995

# The price of a shape is its cost, and this much for its room. By cost alone, targets that are
# short beside the inputs are much padded for want of shapes: the first weight is taken at which
# neither side of the sample is padded more than this at little more cost, or the first of all if
# there is none.
ROOM_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)
MOST_PADDING = 0.07
MOST_COST = 1.015

# So many batches are dealt at every number of rows; the others at those that cost up to this
# much more than the cheapest.
TRIED_BATCHES = 8
TRIED_COST = 1.05

# The rows of a batch are levelled by at most so many exchanges: large batches are level anyway.
MOST_EXCHANGES = 100

# An exchange starts from one of so many of the fullest rows.
GIVING_ROWS = 2

# (input lengths, target lengths) of the sequences of a batch.
SequenceLengths = tuple[np.ndarray, np.ndarray]

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
  lengths: SequenceLengths, rows: int, length_multiple: int
) -> tuple[RowShape, list[list[int]]]:
  """The sequences dealt out evenly over the rows, and the least shape that holds them.

  Longest first, each sequence goes to the row whose fuller side, inputs or targets as a share
  of the batch's, is smallest with it (the greedy rule for two-dimensional load balancing).
  Then the fullest rows exchange sequences with others for as long as that evens the rows out.
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
  lowers the sum of the loads' unevenness most. Where nothing does, the next fullest row has its
  turn: the fullest side of the batch's inputs and that of its targets are often in two rows.
  """
  # A sequence of length 0 in each row stands for nothing.
  sizes = np.concatenate([sizes, np.zeros((rows, 2))])
  row_of = np.concatenate([row_of, np.arange(rows)])
  loads = np.zeros((rows, 2))
  np.add.at(loads, row_of, sizes)
  for _ in range(MOST_EXCHANGES):
    for row in np.argsort(-loads.max(axis=1), kind="stable")[:GIVING_ROWS]:
      given, taken, lowered = _best_exchange(sizes, row_of, loads, row)
      if lowered > 1e-9:
        break
    else:
      break
    other = row_of[taken]
    loads[row] += sizes[taken] - sizes[given]
    loads[other] -= sizes[taken] - sizes[given]
    row_of[given], row_of[taken] = other, row
  return row_of[:-rows]


def _best_exchange(
  sizes: np.ndarray, row_of: np.ndarray, loads: np.ndarray, row: int
) -> tuple[int, int, float]:
  """The sequences that this row best gives and takes, and by how much that evens the rows."""
  given = np.flatnonzero(row_of == row)
  gain = sizes - sizes[given, None]  # of this row, by (given, taken) sequence
  after = _unevenness(loads[row] + gain) + _unevenness(loads[row_of] - gain)
  before = _unevenness(loads)
  lowered = before[row] + before[row_of] - after
  lowered[:, row_of == row] = 0.0
  i, taken = np.unravel_index(np.argmax(lowered), lowered.shape)
  return int(given[i]), int(taken), float(lowered[i, taken])


def _unevenness(loads: np.ndarray) -> np.ndarray:
  """Grows fast with the fuller side.

  Products alone, since a power is rounded otherwise on other processors, and hosts must agree.
  """
  squares = loads * loads
  sixths = squares * squares * squares
  return sixths[..., 0] + sixths[..., 1]


class Packer:
  """Packs batches into the shapes planned for lengths like theirs."""

  def __init__(
    self,
    sample: Sequence[SequenceLengths],
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
    row_counts = self._cheap_row_counts(sample[:TRIED_BATCHES])
    needed = [[self._dealt(lengths, rows)[0] for rows in row_counts] for lengths in sample]
    tokens = np.maximum(
      np.mean([[side.sum() for side in lengths] for lengths in sample], axis=0), 1
    )
    self.shapes = self._plan(needed, tokens, max_shapes)

  def pack(self, lengths: SequenceLengths) -> Packing:
    """The batch in the cheapest planned shape that holds it, or in a larger one of its own."""
    dealt: dict[int, tuple[RowShape, list[list[int]]]] = {}
    for shape in self.shapes:
      # Dealing takes a thousand times as long as to see that it is in vain.
      if any(side.sum() > shape.rows * room for side, room in zip(lengths, shape[1:], strict=True)):
        continue
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

  def _dealt(self, lengths: SequenceLengths, rows: int) -> tuple[RowShape, list[list[int]]]:
    return balanced_rows(lengths, rows, self._length_multiple)

  def _cheap_row_counts(self, sample: Sequence[SequenceLengths]) -> list[int]:
    """The numbers of rows at which these batches cost little."""
    totals = [
      sum(self._costs(*self._dealt(lengths, rows)[0]) for lengths in sample)
      for rows in self._row_counts
    ]
    most = TRIED_COST * min(totals)
    return [rows for rows, total in zip(self._row_counts, totals, strict=True) if total <= most]

  def _plan(
    self, needed: list[list[RowShape]], tokens: np.ndarray, max_shapes: int
  ) -> list[RowShape]:
    """At most max_shapes shapes that hold every batch of the sample cheaply, cheapest first.

    Candidates are the deciles of what the batches need at each number of rows; one that
    holds every batch with a margin is always taken, for the batches that are not in the sample.
    A candidate's price is its cost, as a share of that of a batch in the least shape of its own,
    and its room for either side, as a share of the tokens there, times one of ROOM_WEIGHTS.

    Args:
      needed: the least shapes of each batch, by number of rows.
      tokens: of the inputs and of the targets of a batch, on average.
    """
    candidates: list[RowShape] = []
    holding_all: list[RowShape] = []
    for shapes in zip(*needed, strict=True):
      rows = shapes[0].rows
      inputs = np.sort([shape.input_tokens for shape in shapes])
      targets = np.sort([shape.target_tokens for shape in shapes])
      ranks = [math.ceil(share / 10 * len(needed)) - 1 for share in range(1, 11)]
      for i, j in itertools.product(ranks, ranks):
        candidates.append(RowShape(rows, int(inputs[i]), int(targets[j])))
      margin = [int(tokens * MARGIN) for tokens in (inputs[-1], targets[-1])]
      holding_all.append(_least_shape(rows, margin, self._length_multiple))
    candidates += holding_all
    candidates = sorted(set(candidates), key=lambda shape: self._costs(*shape))
    columns = {shape.rows: column for column, shape in enumerate(needed[0])}
    holds = np.array(
      [[_holds(shape, shapes[columns[shape.rows]]) for shape in candidates] for shapes in needed]
    )
    costs = np.array([self._costs(*shape) for shape in candidates])
    least_cost = np.mean([min(self._costs(*shape) for shape in shapes) for shapes in needed])
    room = np.array([[shape.rows * side for side in shape[1:]] for shape in candidates])
    always = candidates.index(min(holding_all, key=lambda shape: self._costs(*shape)))
    plans: list[list[int]] = []
    plan_costs: list[float] = []
    for weight in ROOM_WEIGHTS:
      price = costs / least_cost + weight * (room / tokens).sum(axis=1)
      plans.append(_chosen(np.where(holds, price, np.inf), always, max_shapes))
      taken = np.array(plans[-1])[holds[:, plans[-1]].argmax(axis=1)]
      plan_costs.append(float(costs[taken].sum()))
      little_padded = np.all(tokens >= (1 - MOST_PADDING) * room[taken].mean(axis=0))
      if little_padded and plan_costs[-1] <= MOST_COST * plan_costs[0]:
        break
    else:
      plans = plans[:1]
    return [candidates[i] for i in plans[-1]]


def _chosen(price: np.ndarray, always: int, max_shapes: int) -> list[int]:
  """Few candidates, in their order, that hold all batches at a low price.

  Candidate `always`, then whichever saves most, as long as it saves 0.5 %.

  Args:
    price: of every candidate for each batch, [batches, candidates], infinite where the candidate
      does not hold the batch.
  """
  chosen = [always]
  while len(chosen) < max_shapes:
    candidate, total = _best_with(price, chosen)
    if total > SAVING * price[:, chosen].min(axis=1).sum():
      break
    chosen.append(candidate)
    # With this one, another may be better than some that were chosen before it.
    for place in range(1, len(chosen) - 1):
      others = chosen[:place] + chosen[place + 1 :]
      chosen = [*others[:place], _best_with(price, others)[0], *others[place:]]
  return sorted(chosen)


def _best_with(price: np.ndarray, chosen: list[int]) -> tuple[int, float]:
  """The candidate that is best beside the chosen ones, and the price of all batches then."""
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
