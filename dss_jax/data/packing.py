"""Packing of sequence pairs into rows of a few fixed shapes.

A sequence is an input and its target; both go into the same row. Sequences are assigned, longest
first, each to the row that is least full with it, so that a batch fills a given number of rows
evenly. A few shapes are planned once from the lengths of some batches, and each batch uses the
cheapest one that fits. Every host computes the same rows from the lengths, without communication.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# The largest planned shape is this many times as large as the largest batch of the sample.
MARGIN = 1.08

# A further shape costs a compilation; it is added if the total price falls to this share.
SAVING = 0.995

# The price of a shape is its cost plus a weight times its size. By cost alone, targets that are
# short compared with the inputs get much padding. The first of these weights is used at which
# neither inputs nor targets have more than MOST_PADDING, for at most MOST_COST times the cost of
# weight 0; if there is none, weight 0.
ROOM_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)
MOST_PADDING = 0.07
MOST_COST = 1.015

# This many batches are packed into every number of rows; the others only into those numbers that
# cost up to TRIED_COST times the cheapest.
TRIED_BATCHES = 8
TRIED_COST = 1.05

# The limit of exchanges that balance the rows of a batch; large batches need few.
MOST_EXCHANGES = 100

# An exchange starts from one of this many fullest rows.
EXCHANGE_ROWS = 2

# (input lengths, target lengths) of the sequences of a batch.
SequenceLengths = tuple[np.ndarray, np.ndarray]

# The cost of a step, in any unit, from (rows, input tokens, target tokens per row).
Costs = Callable[[int, int, int], float]


class RowShape(NamedTuple):
  """The number of rows of a packed batch, and the tokens that fit in each."""

  rows: int
  input_tokens: int
  target_tokens: int


class Packing(NamedTuple):
  """The assignment of sequences to rows: `members[r]` lists the sequences of row r in order."""

  shape: RowShape
  members: list[list[int]]


def aligned_tokens(dtype: str) -> int:
  """Returns the best multiple for row lengths: 16 bytes of the dtype.

  Aligned rows of attention logits are read fastest.
  """
  return {"float32": 4, "bfloat16": 8}[dtype]


def balanced_rows(
  lengths: SequenceLengths, rows: int, length_multiple: int
) -> tuple[RowShape, list[list[int]]]:
  """Distributes the sequences evenly over the rows; returns the smallest shape that fits them.

  Longest first, each sequence goes to the row whose fuller side, inputs or targets as a share
  of the batch's, is smallest with it (the greedy rule for two-dimensional load balancing).
  Then the fullest rows exchange sequences with others as long as that balances the rows.
  """
  # A row with the average number of tokens counts 1 on either side.
  totals = np.maximum([lengths[0].sum(), lengths[1].sum()], 1)
  sizes = np.stack(lengths, axis=1) * rows / totals
  loads = np.zeros((rows, 2))
  row_of = np.zeros(len(sizes), np.int64)
  for sequence in np.argsort(-sizes.max(axis=1), kind="stable"):
    filled = loads + sizes[sequence]
    # Among rows with equally full sides, the one with fewer tokens in all.
    row = int(np.lexsort((filled.sum(axis=1), filled.max(axis=1)))[0])
    loads[row] = filled[row]
    row_of[sequence] = row
  row_of = _balanced(sizes, row_of, rows)
  members = [[int(sequence) for sequence in np.flatnonzero(row_of == row)] for row in range(rows)]
  needed = [max(int(side[row].sum()) for row in members) for side in lengths]
  return _least_shape(rows, needed, length_multiple), members


def _balanced(sizes: np.ndarray, row_of: np.ndarray, rows: int) -> np.ndarray:
  """Returns the row of each sequence after the exchanges that balance the rows.

  The fullest row swaps one of its sequences for one of another row, or gives it away, whichever
  lowers the sum of _unevenness most. If nothing does, the next fullest row is tried: the rows
  with the most inputs and with the most targets are often different ones.
  """
  # A sequence of length 0 in each row lets a row give without taking.
  sizes = np.concatenate([sizes, np.zeros((rows, 2))])
  row_of = np.concatenate([row_of, np.arange(rows)])
  loads = np.zeros((rows, 2))
  np.add.at(loads, row_of, sizes)
  for _ in range(MOST_EXCHANGES):
    for row in np.argsort(-loads.max(axis=1), kind="stable")[:EXCHANGE_ROWS]:
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
  """Returns the best sequences to give and to take, and by how much that lowers the unevenness."""
  given = np.flatnonzero(row_of == row)
  gain = sizes - sizes[given, None]  # of this row, by (given, taken) sequence
  after = _unevenness(loads[row] + gain) + _unevenness(loads[row_of] - gain)
  before = _unevenness(loads)
  lowered = before[row] + before[row_of] - after
  lowered[:, row_of == row] = 0.0
  i, taken = np.unravel_index(np.argmax(lowered), lowered.shape)
  return int(given[i]), int(taken), float(lowered[i, taken])


def _unevenness(loads: np.ndarray) -> np.ndarray:
  """Computes a measure that grows fast with the fuller side of a row.

  Only products are used: powers are rounded differently on other processors, and hosts must agree.
  """
  squares = loads * loads
  sixths = squares * squares * squares
  return sixths[..., 0] + sixths[..., 1]


class Packer:
  """Packs batches into a few shapes, planned from a sample of batches."""

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
      costs: the cost of a shape.
      row_multiple: rows come in multiples of this (the data axis, times the microbatches).
      length_multiple: row lengths are multiples of this.
      max_shapes: the limit; each shape costs a compilation.
    """
    self._costs = costs
    self._length_multiple = length_multiple
    most = max(len(inputs) for inputs, _ in sample)
    self._row_counts = [row_multiple * n for n in _steps(math.ceil(most / row_multiple))]
    row_counts = self._cheap_row_counts(sample[:TRIED_BATCHES])
    needed = [[self._packed(lengths, rows)[0] for rows in row_counts] for lengths in sample]
    tokens = np.maximum(
      np.mean([[side.sum() for side in lengths] for lengths in sample], axis=0), 1
    )
    self.shapes = self._plan(needed, tokens, max_shapes)

  def pack(self, lengths: SequenceLengths) -> Packing:
    """Packs a batch into the cheapest planned shape that fits, or else into a larger one."""
    packed: dict[int, tuple[RowShape, list[list[int]]]] = {}
    for shape in self.shapes:
      # This check is a thousand times faster than packing.
      if any(side.sum() > shape.rows * room for side, room in zip(lengths, shape[1:], strict=True)):
        continue
      if shape.rows not in packed:
        packed[shape.rows] = self._packed(lengths, shape.rows)
      needed, members = packed[shape.rows]
      if _fits(shape, needed):
        return Packing(shape, members)
    rare = []
    for rows in self._row_counts:
      needed, members = self._packed(lengths, rows)
      # Powers of two, so that these rare batches have few shapes.
      shape = RowShape(rows, *(2 ** math.ceil(math.log2(tokens)) for tokens in needed[1:]))
      rare.append(Packing(shape, members))
    return min(rare, key=lambda packing: self._costs(*packing.shape))

  def _packed(self, lengths: SequenceLengths, rows: int) -> tuple[RowShape, list[list[int]]]:
    return balanced_rows(lengths, rows, self._length_multiple)

  def _cheap_row_counts(self, sample: Sequence[SequenceLengths]) -> list[int]:
    """Returns the numbers of rows at which these batches are cheap."""
    totals = [
      sum(self._costs(*self._packed(lengths, rows)[0]) for lengths in sample)
      for rows in self._row_counts
    ]
    most = TRIED_COST * min(totals)
    return [rows for rows, total in zip(self._row_counts, totals, strict=True) if total <= most]

  def _plan(
    self, needed: list[list[RowShape]], tokens: np.ndarray, max_shapes: int
  ) -> list[RowShape]:
    """Returns at most max_shapes shapes that fit every batch of the sample cheaply, cheapest first.

    Candidates are the deciles of what the batches need at each number of rows. One that fits
    every batch with a margin is always included, for the batches outside the sample. A
    candidate's price is its cost relative to the mean cost of a batch in its own smallest shape,
    plus one of ROOM_WEIGHTS times its size relative to the tokens of a batch.

    Args:
      needed: the smallest shapes of each batch, by number of rows.
      tokens: the mean numbers of input and of target tokens of a batch.
    """
    candidates: list[RowShape] = []
    fitting_all: list[RowShape] = []
    for shapes in zip(*needed, strict=True):
      rows = shapes[0].rows
      inputs = np.sort([shape.input_tokens for shape in shapes])
      targets = np.sort([shape.target_tokens for shape in shapes])
      ranks = [math.ceil(share / 10 * len(needed)) - 1 for share in range(1, 11)]
      for i, j in itertools.product(ranks, ranks):
        candidates.append(RowShape(rows, int(inputs[i]), int(targets[j])))
      margin = [int(tokens * MARGIN) for tokens in (inputs[-1], targets[-1])]
      fitting_all.append(_least_shape(rows, margin, self._length_multiple))
    candidates += fitting_all
    candidates = sorted(set(candidates), key=lambda shape: self._costs(*shape))
    columns = {shape.rows: column for column, shape in enumerate(needed[0])}
    fits = np.array(
      [[_fits(shape, shapes[columns[shape.rows]]) for shape in candidates] for shapes in needed]
    )
    costs = np.array([self._costs(*shape) for shape in candidates])
    least_cost = np.mean([min(self._costs(*shape) for shape in shapes) for shapes in needed])
    room = np.array([[shape.rows * side for side in shape[1:]] for shape in candidates])
    always = candidates.index(min(fitting_all, key=lambda shape: self._costs(*shape)))
    plans: list[list[int]] = []
    plan_costs: list[float] = []
    for weight in ROOM_WEIGHTS:
      price = costs / least_cost + weight * (room / tokens).sum(axis=1)
      plans.append(_chosen(np.where(fits, price, np.inf), always, max_shapes))
      taken = np.array(plans[-1])[fits[:, plans[-1]].argmax(axis=1)]
      plan_costs.append(float(costs[taken].sum()))
      little_padded = np.all(tokens >= (1 - MOST_PADDING) * room[taken].mean(axis=0))
      if little_padded and plan_costs[-1] <= MOST_COST * plan_costs[0]:
        break
    else:
      plans = plans[:1]
    return [candidates[i] for i in plans[-1]]


def _chosen(price: np.ndarray, always: int, max_shapes: int) -> list[int]:
  """Chooses few candidates that fit all batches at a low price; returns them in their order.

  Candidate `always`, then whichever saves most, as long as it saves 1 - SAVING.

  Args:
    price: [batches, candidates], infinite where the candidate does not fit the batch.
  """
  chosen = [always]
  while len(chosen) < max_shapes:
    candidate, total = _best_with(price, chosen)
    if total > SAVING * price[:, chosen].min(axis=1).sum():
      break
    chosen.append(candidate)
    # With this one, another candidate may be better than an earlier choice.
    for place in range(1, len(chosen) - 1):
      others = chosen[:place] + chosen[place + 1 :]
      chosen = [*others[:place], _best_with(price, others)[0], *others[place:]]
  return sorted(chosen)


def _best_with(price: np.ndarray, chosen: list[int]) -> tuple[int, float]:
  """Returns the best candidate to add to the chosen ones, and the total price with it."""
  best = price[:, chosen].min(axis=1)
  totals = np.minimum(best[:, None], price).sum(axis=0)
  candidate = int(np.argmin(totals))
  return candidate, float(totals[candidate])


def _steps(last: int) -> list[int]:
  """Returns increasing numbers up to and including `last`.

  From 16 on the gap is an eighth to a quarter of the number.
  """
  steps = list(range(1, 17))
  while steps[-1] < last:
    steps.append(steps[-1] + 2 ** (steps[-1].bit_length() - 3))
  return [step for step in steps if step < last] + [last]


def _fits(shape: RowShape, needed: RowShape) -> bool:
  return needed.input_tokens <= shape.input_tokens and needed.target_tokens <= shape.target_tokens


def _least_shape(rows: int, needed: Sequence[int], length_multiple: int) -> RowShape:
  lengths = [max(math.ceil(tokens / length_multiple), 1) * length_multiple for tokens in needed]
  return RowShape(rows, *lengths)
