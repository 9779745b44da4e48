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

# Row lengths are multiples of this; on a TPU, of a vector register's eight sublanes.
LENGTH_MULTIPLE = 8

# The largest planned shape has this much more room than the sample's fullest batch needs.
MARGIN = 1.15

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


def balanced_rows(lengths: Lengths, rows: int) -> tuple[RowShape, list[list[int]]]:
  """The sequences dealt out evenly over the rows, and the least shape that holds them.

  Longest first, each sequence goes to the row whose fuller side, inputs or targets as a share
  of the batch's, is smallest with it (the greedy rule for two-dimensional load balancing).
  """
  sizes = np.stack(lengths, axis=1) / np.maximum([lengths[0].sum(), lengths[1].sum()], 1)
  loads = np.zeros((rows, 2))
  members: list[list[int]] = [[] for _ in range(rows)]
  for sequence in np.argsort(-sizes.max(axis=1), kind="stable"):
    filled = loads + sizes[sequence]
    # Of rows with equally full sides, the one with more room in all.
    row = int(np.lexsort((filled.sum(axis=1), filled.max(axis=1)))[0])
    loads[row] = filled[row]
    members[row].append(int(sequence))
  needed = [max(int(side[row].sum()) for row in members) for side in lengths]
  return RowShape(rows, *map(_rounded, needed)), members


class Packer:
  """Packs batches into the shapes planned for lengths like theirs."""

  def __init__(
    self,
    sample: Sequence[Lengths],
    *,
    costs: Costs,
    row_multiple: int = 1,
    max_shapes: int = 6,
  ):
    """Plans the shapes.

    Args:
      sample: the lengths of some batches.
      costs: which shapes are cheap.
      row_multiple: rows come in multiples of this (the data axis, times the microbatches).
      max_shapes: each shape is compiled once, so there are few.
    """
    self._costs = costs
    most = max(len(inputs) for inputs, _ in sample)
    self._row_counts = [row_multiple * n for n in _steps(math.ceil(most / row_multiple))]
    needed = [[balanced_rows(lengths, rows)[0] for rows in self._row_counts] for lengths in sample]
    self.shapes = self._plan(needed, max_shapes)

  def pack(self, lengths: Lengths) -> Packing:
    """The batch in the cheapest planned shape that holds it, or in a larger one of its own."""
    dealt: dict[int, tuple[RowShape, list[list[int]]]] = {}
    for shape in self.shapes:
      if shape.rows not in dealt:
        dealt[shape.rows] = balanced_rows(lengths, shape.rows)
      needed, members = dealt[shape.rows]
      if _holds(shape, needed):
        return Packing(shape, members)
    rare = []
    for rows in self._row_counts:
      needed, members = balanced_rows(lengths, rows)
      # Powers of two, so that rare batches share their few shapes.
      shape = RowShape(rows, *(2 ** math.ceil(math.log2(tokens)) for tokens in needed[1:]))
      rare.append(Packing(shape, members))
    return min(rare, key=lambda packing: self._costs(*packing.shape))

  def _plan(self, needed: list[list[RowShape]], max_shapes: int) -> list[RowShape]:
    """At most max_shapes shapes that hold every batch of the sample cheaply, cheapest first.

    Candidates are the quantiles of what the batches need at each number of rows; one that
    holds every batch with a margin is taken first, for the batches that are not in the sample,
    then whichever saves most, as long as it saves 0.5 %.
    """
    candidates: list[RowShape] = []
    holding_all: list[RowShape] = []
    for column, rows in enumerate(self._row_counts):
      inputs = np.sort([shapes[column].input_tokens for shapes in needed])
      targets = np.sort([shapes[column].target_tokens for shapes in needed])
      ranks = [math.ceil(share * len(needed)) - 1 for share in (0.2, 0.4, 0.6, 0.8, 0.9, 1.0)]
      for i, j in itertools.product(ranks, ranks):
        candidates.append(RowShape(rows, int(inputs[i]), int(targets[j])))
      margin = [int(tokens * MARGIN) for tokens in (inputs[-1], targets[-1])]
      holding_all.append(RowShape(rows, *map(_rounded, margin)))
    candidates += holding_all
    candidates = sorted(set(candidates), key=lambda shape: self._costs(*shape))
    prices = np.array([self._costs(*shape) for shape in candidates])
    columns = {rows: column for column, rows in enumerate(self._row_counts)}
    holds = np.array(
      [[_holds(shape, shapes[columns[shape.rows]]) for shape in candidates] for shapes in needed]
    )
    price = np.where(holds, prices, np.inf)  # [batches, candidates]
    chosen = [candidates.index(min(holding_all, key=lambda shape: self._costs(*shape)))]
    best = price[:, chosen[0]]
    while len(chosen) < max_shapes:
      totals = np.minimum(best[:, None], price).sum(axis=0)
      candidate = int(np.argmin(totals))
      if totals[candidate] > 0.995 * best.sum():
        break
      chosen.append(candidate)
      best = np.minimum(best, price[:, candidate])
    return [candidates[i] for i in sorted(chosen)]


def _steps(last: int) -> list[int]:
  """Numbers up to `last` and with it, so that a row may hold one long sequence, ever further apart.

  From 8 on the gap is an eighth to a quarter of the number.
  """
  steps = [1, 2, 3, 4, 6]
  while steps[-1] < last:
    steps.append(steps[-1] + max(2 ** (steps[-1].bit_length() - 3), 2))
  return [step for step in steps if step < last] + [last]


def _holds(shape: RowShape, needed: RowShape) -> bool:
  return needed.input_tokens <= shape.input_tokens and needed.target_tokens <= shape.target_tokens


def _rounded(tokens: int) -> int:
  return max(math.ceil(tokens / LENGTH_MULTIPLE) * LENGTH_MULTIPLE, LENGTH_MULTIPLE)
