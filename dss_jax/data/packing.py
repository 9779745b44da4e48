"""Packing of sequence pairs into rows of a few fixed shapes, first fit.

A sequence is an input and its target; both go into the same row, so a row has room for
`input_tokens` of inputs and `target_tokens` of targets. The few shapes are planned once from
the lengths, and each batch takes the cheapest that holds it: every host, given the lengths,
comes to the same rows without a word to another.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class RowShape(NamedTuple):
  """Rows of a packed batch, and the tokens that each has room for."""

  rows: int
  input_tokens: int
  target_tokens: int


class Packing(NamedTuple):
  """Which sequences share which row: `members[r]` lists row r's sequences in order."""

  shape: RowShape
  members: list[list[int]]


@dataclasses.dataclass(frozen=True)
class TokenCosts:
  """What a row's tokens cost in a step, in any unit: only the ratios matter.

  A token costs its matrix products, and `attention` times its row's length on top.
  """

  input: float = 1.0
  target: float = 2.0
  attention: float = 1e-3

  def __call__(self, shape: RowShape) -> float:
    rows, inputs, targets = shape
    attention = inputs * inputs + targets * targets + inputs * targets
    return rows * (self.input * inputs + self.target * targets + self.attention * attention)


def first_fit(
  input_lengths: np.ndarray, target_lengths: np.ndarray, input_tokens: int, target_tokens: int
) -> list[list[int]]:
  """Rows of sequence numbers, the longest sequences placed first, each in the first row it fits.

  Every sequence must fit a row by itself.
  """
  size = np.maximum(input_lengths / input_tokens, target_lengths / target_tokens)
  order = np.argsort(-size, kind="stable")
  free_inputs = np.full(len(order), input_tokens)
  free_targets = np.full(len(order), target_tokens)
  members: list[list[int]] = []
  for sequence in order:
    fits = (free_inputs >= input_lengths[sequence]) & (free_targets >= target_lengths[sequence])
    row = int(np.argmax(fits))
    if row == len(members):
      members.append([])
    members[row].append(int(sequence))
    free_inputs[row] -= input_lengths[sequence]
    free_targets[row] -= target_lengths[sequence]
  return members


class Packer:
  """Packs batches into the shapes planned for lengths like theirs."""

  def __init__(
    self,
    sample: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    row_multiple: int = 1,
    costs: TokenCosts | None = None,
    max_shapes: int = 4,
  ):
    """Plans the shapes.

    Args:
      sample: (input lengths, target lengths) of the sequences of some batches.
      row_multiple: rows come in multiples of this (the data axis, times the microbatches).
      max_shapes: each shape is compiled once, so there are few.
    """
    self._row_multiple = row_multiple
    self._costs = costs or TokenCosts()
    self.shapes = self._plan(sample, max_shapes)

  def pack(self, input_lengths: np.ndarray, target_lengths: np.ndarray) -> Packing:
    """The batch in the cheapest planned shape that holds it, or in a larger one of its own."""
    for shape in self.shapes:
      if shape.input_tokens < input_lengths.max() or shape.target_tokens < target_lengths.max():
        continue
      members = first_fit(input_lengths, target_lengths, *shape[1:])
      if len(members) <= shape.rows:
        return self._padded(shape, members)
    inputs = max(self.shapes[-1].input_tokens, _rounded(input_lengths.max()))
    targets = max(self.shapes[-1].target_tokens, _rounded(target_lengths.max()))
    members = first_fit(input_lengths, target_lengths, inputs, targets)
    # Powers of two, so that rare batches share their few shapes.
    rows = self._row_multiple * 2 ** math.ceil(math.log2(len(members) / self._row_multiple))
    return self._padded(RowShape(max(rows, self._row_multiple), inputs, targets), members)

  def _padded(self, shape: RowShape, members: list[list[int]]) -> Packing:
    """Deals the rows out so that every device, and every microbatch, gets about as many tokens."""
    return Packing(shape, members + [[] for _ in range(shape.rows - len(members))])

  def _plan(self, sample: Sequence[tuple[np.ndarray, np.ndarray]], max_shapes: int):
    """The ladder of shapes, cheapest first, that packs the sample most cheaply."""
    best: tuple[float, list[RowShape]] | None = None
    for inputs, targets in self._candidates(sample):
      rows = [self._rows(len(first_fit(i, t, inputs, targets))) for i, t in sample]
      ladder = _ladder(rows, max_shapes)
      shapes = [RowShape(count, inputs, targets) for count in ladder]
      cost = sum(self._costs(next(s for s in shapes if s.rows >= count)) for count in rows)
      if best is None or cost < best[0]:
        best = cost, shapes
    assert best is not None
    return best[1]

  def _candidates(self, sample) -> Iterable[tuple[int, int]]:
    """Row lengths to try: the sample's median batch spread over ever more rows, with slack."""
    longest_input = max(int(inputs.max()) for inputs, _ in sample)
    longest_target = max(int(targets.max()) for _, targets in sample)
    batch_inputs = float(np.median([inputs.sum() for inputs, _ in sample]))
    batch_targets = float(np.median([targets.sum() for _, targets in sample]))
    seen = set()
    for rows in self._row_multiple * np.unique(np.geomspace(1, 64, 24).astype(int)):
      for input_slack in (1.02, 1.06, 1.12, 1.25):
        inputs = max(_rounded(batch_inputs / rows * input_slack), _rounded(longest_input))
        for target_slack in (1.02, 1.06, 1.12, 1.25):
          targets = max(_rounded(batch_targets / rows * target_slack), _rounded(longest_target))
          if (inputs, targets) not in seen:
            seen.add((inputs, targets))
            yield inputs, targets
      if inputs == _rounded(longest_input) and targets == _rounded(longest_target):
        return

  def _rows(self, count: int) -> int:
    return math.ceil(count / self._row_multiple) * self._row_multiple


def _ladder(counts: list[int], max_shapes: int) -> list[int]:
  """At most max_shapes of the counts, the largest among them, so that rounding up adds least."""
  values, frequency = np.unique(counts, return_counts=True)
  # least[k][j]: rows added when counts up to values[j] round up to k rungs, the last at j.
  least = np.full((max_shapes + 1, len(values)), np.inf)
  choice = np.zeros((max_shapes + 1, len(values)), int)
  waste = [
    [float((frequency[i : j + 1] * (values[j] - values[i : j + 1])).sum()) for i in range(j + 1)]
    for j in range(len(values))
  ]
  for j in range(len(values)):
    least[1][j] = waste[j][0]
  for rungs in range(2, max_shapes + 1):
    for j in range(len(values)):
      for i in range(1, j + 1):
        total = least[rungs - 1][i - 1] + waste[j][i]
        if total < least[rungs][j]:
          least[rungs][j], choice[rungs][j] = total, i
  rungs = int(np.argmin(least[:, -1]))
  ladder, j = [], len(values) - 1
  while rungs >= 1:
    ladder.append(int(values[j]))
    j, rungs = choice[rungs][j] - 1, rungs - 1
  return sorted(ladder)


def _rounded(length: float, multiple: int = 8) -> int:
  return max(math.ceil(length / multiple) * multiple, multiple)
