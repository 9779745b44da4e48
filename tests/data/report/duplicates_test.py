"""Duplicates, conflicts and overlap are exact, however the hashes are spilled."""

import collections
import random

import numpy as np
import pytest

from dss_jax.data.report import duplicates as row_repeats
from dss_jax.data.report.duplicates import RowHashes


def by_hand(train, evaluation):
  """The same answers from dictionaries."""

  def duplicates(rows):
    first = {}
    found = []
    for line, row in enumerate(rows, start=1):
      if row in first:
        found.append((line, first[row]))
      else:
        first[row] = line
    count = len(found)
    # One example a row, its second place.
    seen = set()
    return count, [pair for pair in found if not (pair[1] in seen or seen.add(pair[1]))][:5]

  labels = collections.defaultdict(dict)
  where = {}
  for line, (text, label, _) in enumerate(train, start=1):
    where.setdefault(text, line)
    if label is not None:
      labels[text].setdefault(label, line)
  conflicts = sorted(
    (sorted(lines.values())[1], min(lines.values())) for lines in labels.values() if len(lines) > 1
  )
  overlap = [(n, where[row[0]]) for n, row in enumerate(evaluation, start=1) if row[0] in where]
  return {
    "duplicates": duplicates(train),
    "evaluation_duplicates": duplicates(evaluation),
    "conflicts": (len(conflicts), conflicts[:5]),
    "overlap": overlap,
  }


def settled(train, evaluation):
  with RowHashes() as hashes:
    for split, rows in enumerate((train, evaluation)):
      for line, row in enumerate(rows, start=1):
        hashes.add(line, *row, split)
    return hashes.settle()


def some_rows(seed, count, texts):
  choose = random.Random(seed)
  return [
    (
      f"text {choose.randrange(texts)}",
      choose.choice([None, "yes", "no"]),
      choose.choice([None, "because"]),
    )
    for _ in range(count)
  ]


@pytest.mark.parametrize(("buffer", "partition"), [(10**6, 10**6), (64, 10**6), (64, 100), (7, 3)])
@pytest.mark.parametrize("texts", [1, 40, 10_000])
def test_equal_to_dictionaries(monkeypatch, buffer, partition, texts):
  monkeypatch.setattr(row_repeats, "_BUFFER_RECORDS", buffer)
  monkeypatch.setattr(row_repeats, "_PARTITION_RECORDS", partition)
  train, evaluation = some_rows(1, 1500, texts), some_rows(2, 300, texts)
  found = settled(train, evaluation)
  expected = by_hand(train, evaluation)
  for kind in ("duplicates", "evaluation_duplicates", "conflicts"):
    repeats = getattr(found, kind)
    assert (repeats.count, list(repeats.lines)) == expected[kind], kind
  assert found.overlap.count == len(expected["overlap"])
  assert set(found.overlap.lines) <= set(expected["overlap"])
  assert found.overlap.lines[:1] == tuple(expected["overlap"][:1])


def test_nothing_to_find():
  found = settled([("a", "x", None), ("b", "x", None), ("c", None, None)], [])
  for repeats in (found.duplicates, found.conflicts, found.overlap, found.evaluation_duplicates):
    assert (repeats.count, repeats.lines) == (0, ())
  assert settled([], []).duplicates.count == 0


def test_no_partition_is_ever_held_whole(monkeypatch):
  largest = []
  compressed = row_repeats._compressed

  def watched(records):
    largest.append(len(records))
    return compressed(records)

  monkeypatch.setattr(row_repeats, "_BUFFER_RECORDS", 50)
  monkeypatch.setattr(row_repeats, "_PARTITION_RECORDS", 100)
  monkeypatch.setattr(row_repeats, "_compressed", watched)
  settled([(f"text {n}", "yes", None) for n in range(20_000)], [])
  settled([("the same", "yes", None)] * 20_000, [])
  assert max(largest) <= 150


def test_the_temporary_files_are_removed(monkeypatch, tmp_path):
  monkeypatch.setattr(row_repeats.tempfile, "tempdir", str(tmp_path))
  monkeypatch.setattr(row_repeats, "_BUFFER_RECORDS", 10)
  with RowHashes() as hashes:
    for line in range(100):
      hashes.add(line, f"text {line}", None, None, 0)
    assert list(tmp_path.rglob("*.records"))
  assert list(tmp_path.iterdir()) == []


def test_a_record_is_64_bit():
  # A hash cut to 32 bits would call rows equal that are not, in any large file.
  assert row_repeats._compressed(np.zeros((2, 6), dtype=np.int64)).dtype == np.int64
  found = settled([(f"text {n}", None, None) for n in range(200_000)], [])
  assert found.duplicates.count == 0
