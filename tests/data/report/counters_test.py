"""Counters with bounded memory give the exact result, or None where they cannot."""

import random

import numpy as np
import pytest

from dss_jax.data.report import counters
from dss_jax.data.report.counters import (
  InstructionFinder,
  LabelCounter,
  LengthHistogram,
  LineCounter,
)
from dss_jax.data.report.figures import LabelStatistics, LineNumbers


def test_lines_are_counted_and_the_first_five_kept():
  counter = LineCounter()
  for line in range(3, 20):
    counter.add(line)
  assert counter.result() == LineNumbers(17, (3, 4, 5, 6, 7))


@pytest.mark.parametrize("most", [3, 100, 8191])
def test_percentiles_are_exact_for_short_texts(most):
  choose = random.Random(0)
  lengths = [choose.randrange(most + 1) for _ in range(1234)]
  histogram = LengthHistogram()
  for length in lengths:
    histogram.add(length)
  found = histogram.result()
  expected = np.percentile(lengths, [50, 90, 99], method="inverted_cdf")
  assert [found.p50, found.p90, found.p99] == expected.tolist()
  assert (found.longest, found.count) == (max(lengths), 1234)
  assert found.mean == pytest.approx(np.mean(lengths))


def test_percentiles_of_long_texts_are_close_and_bins_bounded():
  histogram = LengthHistogram()
  lengths = np.random.default_rng(0).integers(0, 10_000_000, 50_000).tolist()
  for length in lengths:
    histogram.add(length)
  found = histogram.result()
  assert found.p50 == pytest.approx(np.percentile(lengths, 50, method="inverted_cdf"), rel=1 / 4096)
  assert found.longest == max(lengths)
  assert len(histogram._bins) < 60_000
  assert LengthHistogram().result().p99 == 0


def counted(labels):
  counter = LabelCounter()
  for label in labels:
    counter.add(label)
  return counter.result()


def test_classes_are_ranked():
  found = counted(["b"] * 5 + ["a"] * 20 + ["c"] * 5)
  assert found.are_classes
  assert found.distinct == 3
  assert found.most_common == (("a", 20), ("b", 5), ("c", 5))


def test_free_text_is_not_taken_for_classes():
  assert counted(["a", "b", "c"]) == LabelStatistics(3, False, (), ())
  assert counted([str(n) for n in range(1000)] * 5).distinct == 1000
  assert counted([str(n) for n in range(1001)] * 5) == LabelStatistics(None, False, (), ())
  assert counted(["a"] * 9 + ["x" * 201]).distinct is None
  assert counted([]).distinct == 0


def test_labels_that_differ_in_case_or_spaces_are_paired():
  found = counted(["Yes"] * 9 + ["yes "] * 6 + ["no"] * 9)
  assert found.variants == (("Yes", "yes "),)


def found_in(texts):
  finder = InstructionFinder()
  for line, text in enumerate(texts, start=1):
    finder.add(line, text)
  found = finder.result()
  finder.close()
  return found


@pytest.mark.parametrize("spill", [3, 3 * 2**17])
def test_the_shared_words_and_the_rows_without_them(monkeypatch, spill):
  monkeypatch.setattr(counters, "_SPILL_ITEMS", spill)
  texts = [f"Classify the text: {n}" for n in range(60)]
  # Half of the rows without it come first: the vote must not depend on the order.
  texts = [f"only {n}" for n in range(20)] + texts + [f"{n} bare text" for n in range(20)]
  found = found_in(texts)
  assert (found.words, found.where, found.rows) == ("Classify the text:", "opening", 60)
  assert (found.missing.count, found.missing.lines) == (40, (1, 2, 3, 4, 5))


def test_the_instruction_may_be_at_the_end():
  found = found_in([f"{n} {n}. Is this true?" for n in range(9)] + ["bare"])
  assert (found.words, found.where, found.missing.lines) == ("Is this true?", "closing", (10,))


def test_half_of_the_rows_are_not_most():
  assert found_in(["say it now: a"] * 5 + [f"{n} is else {n}" for n in range(5)]) is None
  assert found_in(["say it now: a"]) is None
  assert found_in([]) is None
