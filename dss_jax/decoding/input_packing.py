"""Packing of inputs into rows for the encoder, several in a row."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

# The shortest packed row; see padded_length for longer ones.
WIDTH = 256


@dataclasses.dataclass(frozen=True)
class PackedInputs:
  """Inputs side by side in rows.

  Attributes:
    tokens_RW: padded.
    segment_ids_RW: which input a token belongs to; 0 is padding.
    places: of each packed input, by its number, the position of its first token in the flattened
      rows.
  """

  tokens_RW: np.ndarray
  segment_ids_RW: np.ndarray
  places: dict[int, int]


def pack(
  inputs: Mapping[int, Sequence[int]], most_rows: int, multiple: int, pad_id: int
) -> PackedInputs:
  """Packs inputs in their order, each into the fullest row that it fits, else not at all.

  The rows are `most_rows` of WIDTH, or half as many of twice the width until the longest input
  fits; half of the rows if the others would be empty.

  Args:
    multiple: the number of rows is a multiple of it.
  """
  width = padded_length(max(map(len, inputs.values())), WIDTH)
  rows = max(most_rows * WIDTH // width // multiple, 1) * multiple
  used, segments = [0] * rows, [0] * rows
  tokens_RW = np.full((rows, width), pad_id, np.int32)
  segment_ids_RW = np.zeros((rows, width), np.int32)
  places = {}
  for number, ids in inputs.items():
    fitting = [row for row in range(rows) if used[row] + len(ids) <= width]
    if not fitting:
      continue
    row = max(fitting, key=lambda row: used[row])
    start = used[row]
    segments[row] += 1
    used[row] += len(ids)
    tokens_RW[row, start : used[row]] = ids
    segment_ids_RW[row, start : used[row]] = segments[row]
    places[number] = row * width + start
  half = max(rows // 2 // multiple, 1) * multiple
  if not any(used[half:]):
    tokens_RW, segment_ids_RW = tokens_RW[:half], segment_ids_RW[:half]
  return PackedInputs(tokens_RW, segment_ids_RW, places)


def padded_length(length: int, least: int) -> int:
  """Returns the smallest of least, 2 * least, 4 * least and so on that is not less than length.

  Beyond 512 there is another one halfway, since the padding of long inputs takes memory.
  """
  size = least
  while size < length:
    size *= 2
  halfway = 3 * size // 4
  return halfway if size > 512 and length <= halfway else size
