"""Duplicates, conflicts and overlap are exact, whatever is spilled to disk."""

import collections
import random

import numpy as np
import pytest

from dss_jax.data.report import duplicates
from dss_jax.data.report.duplicates import RowHashes


def with_dictionaries(train, evaluation):
  """Returns the expected result, computed in memory."""

  def repeated(rows):
    first = {}
    found = []
    for line, row in enumerate(rows, start=1):
      if row in first:
        found.append((line, first[row]))
      else:
        first[row] = line
    count = len(found)
    # Each repeated row is named once, by its second place.
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
    "duplicates": repeated(train),
    "evaluation_duplicates": repeated(evaluation),
    "conflicts": (len(conflicts), conflicts[:5]),
    "overlap": overlap,
  }


def found_in(train, evaluation):
  with RowHashes() as hashes:
    for split, rows in enumerate((train, evaluation)):
      for line, row in enumerate(rows, start=1):
        hashes.add(line, *row, split)
    return hashes.find_repeats()


def random_rows(seed, count, texts):
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
def test_equals_the_result_of_dictionaries(monkeypatch, buffer, partition, texts):
  monkeypatch.setattr(duplicates, "_BUFFER_RECORDS", buffer)
  monkeypatch.setattr(duplicates, "_PARTITION_RECORDS", partition)
  train, evaluation = random_rows(1, 1500, texts), random_rows(2, 300, texts)
  found = found_in(train, evaluation)
  expected = with_dictionaries(train, evaluation)
  for kind in ("duplicates", "evaluation_duplicates", "conflicts"):
    repeats = getattr(found, kind)
    assert (repeats.count, list(repeats.lines)) == expected[kind], kind
  assert found.overlap.count == len(expected["overlap"])
  assert set(found.overlap.lines) <= set(expected["overlap"])
  assert found.overlap.lines[:1] == tuple(expected["overlap"][:1])


def test_nothing_to_find():
  found = found_in([("a", "x", None), ("b", "x", None), ("c", None, None)], [])
  for repeats in (found.duplicates, found.conflicts, found.overlap, found.evaluation_duplicates):
    assert (repeats.count, repeats.lines) == (0, ())
  assert found_in([], []).duplicates.count == 0


def test_a_large_partition_is_never_in_memory_as_a_whole(monkeypatch):
  largest = []
  compressed = duplicates._compressed

  def recorded(records):
    largest.append(len(records))
    return compressed(records)

  monkeypatch.setattr(duplicates, "_BUFFER_RECORDS", 50)
  monkeypatch.setattr(duplicates, "_PARTITION_RECORDS", 100)
  monkeypatch.setattr(duplicates, "_compressed", recorded)
  found_in([(f"text {n}", "yes", None) for n in range(20_000)], [])
  found_in([("the same", "yes", None)] * 20_000, [])
  assert max(largest) <= 150


def test_the_temporary_files_are_removed(monkeypatch, tmp_path):
  monkeypatch.setattr(duplicates.tempfile, "tempdir", str(tmp_path))
  monkeypatch.setattr(duplicates, "_BUFFER_RECORDS", 10)
  with RowHashes() as hashes:
    for line in range(100):
      hashes.add(line, f"text {line}", None, None, 0)
    assert list(tmp_path.rglob("*.records"))
  assert list(tmp_path.iterdir()) == []


def test_hashes_have_64_bits():
  # With 32 bits, different rows of a large file would seem equal.
  assert duplicates._compressed(np.zeros((2, 6), dtype=np.int64)).dtype == np.int64
  found = found_in([(f"text {n}", None, None) for n in range(200_000)], [])
  assert found.duplicates.count == 0
