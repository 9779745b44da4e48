"""Repeated, contradictory and leaked rows, counted exactly in constant memory.

Each row is kept as three 64-bit hashes and its place. They are spilled to temporary files by
the leading bits of the input's hash, so that all rows of one input are in one partition, and
the partitions are processed one after the other. Two different texts among ten million rows
have the same hash with probability 3e-6.
"""

import array
import itertools
import pathlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dss_jax.data.report.figures import SHOWN_LINES, Repeats

_BUFFER_RECORDS = 2**17
_PARTITION_RECORDS = 2**19
_PARTITION_BITS = 6
_FIRST_SHIFT = 64 - _PARTITION_BITS
_NEVER = np.iinfo(np.int64).max

# Columns of a record. FIRST and SECOND are places: line * 2, plus 1 for an evaluation row.
_INPUT, _ROW, _LABEL, _FIRST, _SECOND, _COUNT = range(6)
_NO_LABEL = 0


@dataclass(frozen=True)
class RowRepeats:
  """The result of RowHashes.

  Attributes:
    duplicates: training rows equal to an earlier one in input, label and rationale.
    evaluation_duplicates: the same within the evaluation rows.
    conflicts: training inputs with more than one label; (first contradicting line, first line).
    overlap: evaluation rows whose input is a training input; (evaluation line, training line).
  """

  duplicates: Repeats
  evaluation_duplicates: Repeats
  conflicts: Repeats
  overlap: Repeats


class RowHashes:
  """A context manager that takes rows by `add` and finds the repeats among them once."""

  def __init__(self) -> None:
    self._folder = tempfile.TemporaryDirectory(prefix="dss_rows_")
    self._top = pathlib.Path(self._folder.name)
    self._buffer = array.array("q")
    self._spilled = False

  def __enter__(self) -> "RowHashes":
    return self

  def __exit__(self, *_: object) -> None:
    self._folder.cleanup()

  def add(self, line: int, text: str, label: str | None, rationale: str | None, split: int) -> None:
    """Adds a row; `split` is 0 for training, 1 for evaluation."""
    label_hash = _NO_LABEL if label is None else hash(label)
    row_hash = hash((text, label, rationale))
    self._buffer.extend((hash(text), row_hash, label_hash, line * 2 + split))
    if len(self._buffer) >= 4 * _BUFFER_RECORDS:
      self._spill(self._take_buffer(), self._top, _FIRST_SHIFT)
      self._spilled = True

  def find_repeats(self) -> RowRepeats:
    """Returns what repeats among all rows added."""
    places = [np.empty((0, 2), dtype=np.int64)] * 4
    counts = [0, 0, 0, 0]
    for records in self._partitions():
      found = (
        _duplicates(records, split=0),
        _duplicates(records, split=1),
        _conflicts(records),
        _overlap(records),
      )
      for kind, (count, new_places) in enumerate(found):
        counts[kind] += count
        places[kind] = _first_places(np.concatenate([places[kind], new_places]))
    return RowRepeats(
      *(
        Repeats(count, tuple((int(a) // 2, int(b) // 2) for a, b in pairs))
        for count, pairs in zip(counts, places, strict=True)
      )
    )

  def _take_buffer(self) -> np.ndarray:
    """Empties the buffer and returns its rows as compressed records."""
    rows = np.frombuffer(self._buffer, dtype=np.int64).reshape(-1, 4)
    records = np.empty((len(rows), 6), dtype=np.int64)
    records[:, :4] = rows
    records[:, _SECOND] = _NEVER
    records[:, _COUNT] = 1
    self._buffer = array.array("q")
    return _compressed(records)

  def _partitions(self) -> Iterator[np.ndarray]:
    rest = self._take_buffer()
    if not self._spilled:
      yield rest
      return
    self._spill(rest, self._top, _FIRST_SHIFT)
    yield from self._folder_partitions(self._top, _FIRST_SHIFT - _PARTITION_BITS)

  def _folder_partitions(self, folder: pathlib.Path, shift: int) -> Iterator[np.ndarray]:
    for path in sorted(folder.glob("*.records")):
      yield from self._file_partitions(path, shift)
      path.unlink()

  def _file_partitions(self, path: pathlib.Path, shift: int) -> Iterator[np.ndarray]:
    """Yields the records of a file, partitioned by further bits if there are too many."""
    chunks = _read_chunks(path)
    records = np.empty((0, 6), dtype=np.int64)
    for chunk in chunks:
      records = _compressed(np.concatenate([records, chunk]))
      if len(records) > _PARTITION_RECORDS and shift >= 0:
        folder = path.with_suffix("")
        folder.mkdir()
        for part in itertools.chain([records], chunks):
          self._spill(part, folder, shift)
        yield from self._folder_partitions(folder, shift - _PARTITION_BITS)
        return
    yield records

  def _spill(self, records: np.ndarray, folder: pathlib.Path, shift: int) -> None:
    bits = records[:, _INPUT].view(np.uint64) >> np.uint64(shift)
    keys = (bits & np.uint64(2**_PARTITION_BITS - 1)).astype(np.int64)
    order = np.argsort(keys, kind="stable")
    records, keys = records[order], keys[order]
    for key in np.unique(keys):
      begin, end = np.searchsorted(keys, [key, key + 1])
      with open(folder / f"{key:02d}.records", "ab") as file:
        file.write(records[begin:end].tobytes())


def _read_chunks(path: pathlib.Path) -> Iterator[np.ndarray]:
  with open(path, "rb") as file:
    while data := file.read(_BUFFER_RECORDS * 6 * 8):
      yield np.frombuffer(data, dtype=np.int64).reshape(-1, 6)


def _starts(*columns: np.ndarray) -> np.ndarray:
  """Returns the indices in sorted columns at which a new combination of values begins."""
  is_new = np.zeros(len(columns[0]), dtype=bool)
  is_new[:1] = True
  for column in columns:
    is_new[1:] |= column[1:] != column[:-1]
  return np.flatnonzero(is_new)


def _compressed(records: np.ndarray) -> np.ndarray:
  """Merges the equal rows of a split into one record: their first two places and their number.

  A file of equal rows thus needs little memory. Sorted by row.
  """
  if not len(records):
    return records
  split = records[:, _FIRST] & 1
  records = records[np.lexsort((records[:, _FIRST], split, records[:, _ROW]))]
  starts = _starts(records[:, _ROW], records[:, _FIRST] & 1)
  kept = records[starts]
  kept[:, _COUNT] = np.add.reduceat(records[:, _COUNT], starts)
  sizes = np.diff(np.append(starts, len(records)))
  is_group = sizes > 1
  following = records[starts[is_group] + 1, _FIRST]
  kept[is_group, _SECOND] = np.minimum(kept[is_group, _SECOND], following)
  return kept


def _first_places(places: np.ndarray) -> np.ndarray:
  return places[np.argsort(places[:, 0], kind="stable")[:SHOWN_LINES]]


def _duplicates(records: np.ndarray, *, split: int) -> tuple[int, np.ndarray]:
  chosen = records[(records[:, _FIRST] & 1) == split]
  repeated = chosen[chosen[:, _COUNT] > 1]
  count = int((repeated[:, _COUNT] - 1).sum())
  return count, _first_places(repeated[:, [_SECOND, _FIRST]])


def _conflicts(records: np.ndarray) -> tuple[int, np.ndarray]:
  chosen = records[((records[:, _FIRST] & 1) == 0) & (records[:, _LABEL] != _NO_LABEL)]
  chosen = chosen[np.lexsort((chosen[:, _FIRST], chosen[:, _LABEL], chosen[:, _INPUT]))]
  # The first row of every (input, label), in order of place within the input.
  firsts = chosen[_starts(chosen[:, _INPUT], chosen[:, _LABEL])]
  firsts = firsts[np.lexsort((firsts[:, _FIRST], firsts[:, _INPUT]))]
  starts = _starts(firsts[:, _INPUT])
  starts = starts[np.diff(np.append(starts, len(firsts))) > 1]
  places = np.stack([firsts[starts + 1, _FIRST], firsts[starts, _FIRST]], axis=1)
  return len(starts), _first_places(places)


def _overlap(records: np.ndarray) -> tuple[int, np.ndarray]:
  is_evaluation = (records[:, _FIRST] & 1) == 1
  train, evaluation = records[~is_evaluation], records[is_evaluation]
  train = train[np.lexsort((train[:, _FIRST], train[:, _INPUT]))]
  inputs = train[:, _INPUT]
  leaked = evaluation[np.isin(evaluation[:, _INPUT], inputs)]
  earliest = train[np.searchsorted(inputs, leaked[:, _INPUT]), _FIRST]
  places = np.stack([leaked[:, _FIRST], earliest], axis=1)
  return int(leaked[:, _COUNT].sum()), _first_places(places)
