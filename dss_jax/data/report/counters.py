"""Counters over rows whose memory does not grow with the number of rows."""

import array
import collections
import io
import tempfile
from typing import IO

import numpy as np

from dss_jax.data.report.figures import (
  SHOWN_LINES,
  SHOWN_TEXTS,
  Instruction,
  LabelStatistics,
  LengthStatistics,
  LineNumbers,
  Rewritten,
  RewrittenTexts,
)
from dss_jax.data.texts import without_invisible
from dss_jax.data.vocabularies import RoundTrip, Vocabulary

MAX_DISTINCT_LABELS = 1000
# A longer label is free text, not the name of a class.
MAX_CLASS_NAME_CHARACTERS = 200
INSTRUCTION_WORDS = 3

_WORDS_WITHIN_CHARACTERS = 120
_EXACT_LENGTH_BITS = 13
_SPILL_ITEMS = 3 * 2**17
_EXCERPT_CHARACTERS = 60


class LineCounter:
  """Counts rows and keeps the first few line numbers."""

  def __init__(self) -> None:
    self.count = 0
    self._lines: list[int] = []

  def add(self, line: int) -> None:
    self.count += 1
    if len(self._lines) < SHOWN_LINES:
      self._lines.append(line)

  def result(self) -> LineNumbers:
    return LineNumbers(self.count, tuple(self._lines))


class LengthHistogram:
  """Counts lengths: exact below 8,192, within 1 part in 4,096 above; at most ~60,000 bins."""

  def __init__(self) -> None:
    self._bins: dict[int, int] = collections.defaultdict(int)
    self._count = self._total = self._longest = 0

  def add(self, length: int) -> None:
    self._count += 1
    self._total += length
    if length > self._longest:
      self._longest = length
    coarse = max(0, length.bit_length() - _EXACT_LENGTH_BITS)
    self._bins[length >> coarse << coarse] += 1

  def result(self) -> LengthStatistics:
    """Returns the statistics; percentiles are nearest-rank, so each is a length that occurs."""
    if not self._count:
      return LengthStatistics(0, 0.0, 0, 0, 0, 0)
    lengths = sorted(self._bins)
    reached = np.cumsum([self._bins[length] for length in lengths])
    ranks = [-(-percent * self._count // 100) for percent in (50, 90, 99)]
    p50, p90, p99 = (lengths[i] for i in np.searchsorted(reached, ranks))
    return LengthStatistics(self._count, self._total / self._count, p50, p90, p99, self._longest)


class LabelCounter:
  """Counts labels, and stops when they are too many or too long to be the names of classes."""

  def __init__(self) -> None:
    self._counts: dict[str, int] | None = {}
    self._total = 0

  def add(self, label: str) -> None:
    self._total += 1
    if self._counts is None:
      return
    count = self._counts.get(label)
    if count is not None:
      self._counts[label] = count + 1
    elif len(self._counts) < MAX_DISTINCT_LABELS and len(label) <= MAX_CLASS_NAME_CHARACTERS:
      self._counts[label] = 1
    else:
      self._counts = None

  def result(self, vocabulary: Vocabulary | None = None) -> LabelStatistics:
    if self._counts is None or not self._counts:
      return LabelStatistics(0 if self._counts is not None else None, False, (), ())
    distinct = len(self._counts)
    same_written = () if vocabulary is None else _same_written(list(self._counts), vocabulary)
    if self._total < 5 * distinct:
      return LabelStatistics(distinct, False, (), (), same_written)
    ranked = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
    seen: dict[str, str] = {}
    variants = []
    for label, _ in ranked:
      known = seen.setdefault(_folded(label), label)
      if known != label:
        variants.append((known, label))
    return LabelStatistics(
      distinct, True, tuple(ranked[:20]), tuple(variants[:SHOWN_LINES]), same_written
    )


def _folded(label: str) -> str:
  return " ".join(without_invisible(label).casefold().split())


def _same_written(labels: list[str], vocabulary: Vocabulary) -> tuple[tuple[str, str], ...]:
  """Returns the first pairs of labels with the same written form, but for case and spaces."""
  first: dict[str, str] = {}
  pairs = []
  for label, written in zip(labels, vocabulary.writable(labels), strict=True):
    known = first.setdefault(written, label)
    if _folded(known) != _folded(label):
      pairs.append((known, label))
  return tuple(pairs[:SHOWN_LINES])


class RewriteCounter:
  """Counts texts that differ from the text of their token ids, and keeps a few of them."""

  def __init__(self) -> None:
    self._rows = LineCounter()
    self._causes = {"spaces": 0, "unknown": 0, "normalised": 0}
    # Of each cause, the first different texts and their lines.
    self._examples: dict[str, dict[tuple[str, str], int]] = {cause: {} for cause in self._causes}

  def add(self, line: int, text: str, trip: RoundTrip) -> None:
    """Counts a text that is not what its token ids stand for."""
    if text == trip.text:
      return
    self._rows.add(line)
    if trip.has_unknown:
      cause = "unknown"
    else:
      cause = "spaces" if text.split() == trip.text.split() else "normalised"
    self._causes[cause] += 1
    if len(self._examples[cause]) < SHOWN_TEXTS:
      self._examples[cause].setdefault(excerpts(text, trip.text), line)

  def result(self) -> RewrittenTexts:
    # The first example of each cause, before the second of any.
    ranked = sorted(
      (rank, line, texts)
      for examples in self._examples.values()
      for rank, (texts, line) in enumerate(examples.items())
    )
    examples = tuple(Rewritten(line, *texts) for _, line, texts in ranked[:SHOWN_TEXTS])
    return RewrittenTexts(rows=self._rows.result(), **self._causes, examples=examples)


def excerpts(text: str, written: str) -> tuple[str, str]:
  """Returns both texts, cut to a part around their first difference if they are long."""
  if max(len(text), len(written)) <= _EXCERPT_CHARACTERS:
    return text, written
  pairs = enumerate(zip(text, written, strict=False))
  shorter = min(len(text), len(written))
  same = next((place for place, (one, other) in pairs if one != other), shorter)
  start = max(0, same - _EXCERPT_CHARACTERS // 2)
  return _excerpt(text, start), _excerpt(written, start)


def _excerpt(text: str, start: int) -> str:
  end = start + _EXCERPT_CHARACTERS
  return ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")


class InstructionFinder:
  """Finds the first or last three words that more than half of all rows share.

  The Boyer-Moore majority vote finds the only possible candidate at each end in one pass. The
  hashes of all ends, spilled to a temporary file, then give the exact rows without it.
  """

  def __init__(self) -> None:
    self._rows = 0
    self._votes = {"opening": ("", 0), "closing": ("", 0)}
    self._buffer = array.array("q")
    self._spilled: IO[bytes] = io.BytesIO()

  def add(self, line: int, text: str) -> None:
    self._rows += 1
    opening = " ".join(text[:_WORDS_WITHIN_CHARACTERS].split()[:INSTRUCTION_WORDS])
    closing = " ".join(text[-_WORDS_WITHIN_CHARACTERS:].split()[-INSTRUCTION_WORDS:])
    self._vote("opening", opening)
    self._vote("closing", closing)
    self._buffer.extend((hash(opening), hash(closing), line))
    if len(self._buffer) >= _SPILL_ITEMS:
      # Small data sets never touch the disk.
      if isinstance(self._spilled, io.BytesIO):
        self._spilled = tempfile.TemporaryFile(prefix="dss_ends_")  # noqa: SIM115
      self._spill()

  def result(self) -> Instruction | None:
    """Returns the shared words; None if no three words are shared by most rows, or one row only."""
    self._spill()
    found = []
    for column, (where, (words, _)) in enumerate(self._votes.items()):
      rows, missing = self._rows_with(column, hash(words))
      if words and self._rows > 1 and 2 * rows > self._rows:
        found.append(Instruction(words, where, rows, missing))
    return max(found, key=lambda instruction: instruction.rows, default=None)

  def _vote(self, where: str, words: str) -> None:
    candidate, lead = self._votes[where]
    if words == candidate:
      self._votes[where] = (candidate, lead + 1)
    elif lead == 0:
      self._votes[where] = (words, 1)
    else:
      self._votes[where] = (candidate, lead - 1)

  def close(self) -> None:
    self._spilled.close()

  def _spill(self) -> None:
    self._spilled.write(self._buffer.tobytes())
    self._buffer = array.array("q")

  def _rows_with(self, column: int, wanted: int) -> tuple[int, LineNumbers]:
    self._spilled.seek(0)
    rows = missing = 0
    lines: list[int] = []
    while data := self._spilled.read(_SPILL_ITEMS * 8):
      ends = np.frombuffer(data, dtype=np.int64).reshape(-1, 3)
      without = ends[ends[:, column] != wanted, 2]
      rows += len(ends) - len(without)
      missing += len(without)
      lines.extend(int(line) for line in without[: SHOWN_LINES - len(lines)])
    return rows, LineNumbers(missing, tuple(lines))
