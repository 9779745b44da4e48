"""Building of the dataset report, in one pass over the rows and constant memory."""

import contextlib
from collections.abc import Iterable

from dss_jax.data.rationale_checks import ends_mid_sentence, mentions
from dss_jax.data.records import ProblemTally, Row, empty_file_problem, good_rows
from dss_jax.data.report.counters import (
  InstructionFinder,
  LabelCounter,
  LengthHistogram,
  LineCounter,
  RewriteCounter,
)
from dss_jax.data.report.duplicates import RowHashes
from dss_jax.data.report.figures import (
  DatasetReport,
  Repeats,
  RewrittenTexts,
  SplitReport,
  TextLengths,
)
from dss_jax.data.report.warnings import report_warnings
from dss_jax.data.sources import EXPLAIN_PREFIX, PREDICT_PREFIX
from dss_jax.data.vocabularies import Vocabulary
from dss_jax.errors import UserError
from dss_jax.storage.files import PathLike

# A rationale is expected to contain a short label, but not a long one (a summary, say).
MAX_MENTIONED_CHARACTERS = 100

_BATCH_CHARACTERS = 2**20
_BATCH_TEXTS = 1024


def dataset_report(
  path: PathLike,
  *,
  max_input_tokens: int,
  max_output_tokens: int,
  eval_path: PathLike | None = None,
  labels_as_text: bool = False,
  vocabulary: Vocabulary | None = None,
) -> DatasetReport:
  """Returns the report on a JSONL file and, if given, its evaluation file.

  Raises:
    UserError: a file cannot be read, has no row, or has bad lines; one error lists the bad
      lines of both files.
  """
  problems = ProblemTally()
  report = report_on_rows(
    good_rows(path, problems, labels_as_text),
    name=str(path),
    max_input_tokens=max_input_tokens,
    max_output_tokens=max_output_tokens,
    eval_rows=None if eval_path is None else good_rows(eval_path, problems, labels_as_text),
    eval_name=str(eval_path),
    vocabulary=vocabulary,
  )
  problems.raise_if_any()
  for split in (report.train, report.evaluation):
    if split is not None and not split.rows:
      raise UserError(empty_file_problem(split.name))
  return report


def report_on_rows(
  rows: Iterable[tuple[int, Row]],
  *,
  name: str,
  max_input_tokens: int,
  max_output_tokens: int,
  eval_rows: Iterable[tuple[int, Row]] | None = None,
  eval_name: str = "evaluation",
  vocabulary: Vocabulary | None = None,
) -> DatasetReport:
  """Returns the report on (line number, row) pairs, which are not checked."""
  limits = {
    "input": max_input_tokens,
    "label": max_output_tokens,
    "rationale": max_output_tokens,
  }
  splits = [(name, rows)] if eval_rows is None else [(name, rows), (eval_name, eval_rows)]
  counts = []
  with contextlib.ExitStack() as stack:
    hashes = stack.enter_context(RowHashes())
    for split, (split_name, split_rows) in enumerate(splits):
      split_counts = _SplitCounts(split_name, vocabulary, limits)
      counts.append(stack.enter_context(contextlib.closing(split_counts)))
      for line, row in split_rows:
        text, label, rationale = row["input_text"], row.get("output_text"), row.get("rationale")
        split_counts.add(line, text, label, rationale)
        hashes.add(line, text, label, rationale, split)
    repeats = hashes.find_repeats()
    report = DatasetReport(
      train=counts[0].result(repeats.duplicates),
      evaluation=None if eval_rows is None else counts[1].result(repeats.evaluation_duplicates),
      conflicts=repeats.conflicts,
      overlap=None if eval_rows is None else repeats.overlap,
      vocabulary=None if vocabulary is None else vocabulary.spec,
      warnings=[],
    )
  report.warnings.extend(report_warnings(report))
  return report


def _longer_prefix(vocabulary: Vocabulary | None) -> str:
  """Returns the task prefix with more tokens: an input is cut if either of its sequences is."""
  if vocabulary is None:
    return ""
  return max(PREDICT_PREFIX, EXPLAIN_PREFIX, key=lambda prefix: len(vocabulary.encode(prefix)))


class _FieldTokens:
  """Counts the lengths and, of a target, the rewritten texts of one field.

  Texts are tokenised once, in batches.
  """

  def __init__(self, vocabulary: Vocabulary | None, limit: int, *, is_input: bool):
    self._vocabulary = vocabulary
    self._limit = limit
    self._prefix = _longer_prefix(vocabulary) if is_input else ""
    self._rewrites = None if vocabulary is None or is_input else RewriteCounter()
    self._characters = LengthHistogram()
    self._tokens = LengthHistogram()
    self._cut = LineCounter()
    self._pending: list[tuple[int, str]] = []
    self._pending_characters = 0

  def add(self, line: int, text: str) -> None:
    self._characters.add(len(text))
    if self._vocabulary is None:
      return
    self._pending.append((line, self._prefix + text))
    self._pending_characters += len(text)
    if self._pending_characters > _BATCH_CHARACTERS or len(self._pending) >= _BATCH_TEXTS:
      self._count_pending()

  def rewritten(self) -> RewrittenTexts | None:
    self._count_pending()
    return None if self._rewrites is None else self._rewrites.result()

  def lengths(self) -> TextLengths:
    if self._vocabulary is None:
      return TextLengths(self._characters.result(), None, self._limit, None)
    self._count_pending()
    return TextLengths(
      self._characters.result(), self._tokens.result(), self._limit, self._cut.result()
    )

  def _count_pending(self) -> None:
    if not self._pending:
      return
    assert self._vocabulary is not None
    texts = [text for _, text in self._pending]
    if self._rewrites is None:
      counts = self._vocabulary.count_tokens(texts)
    else:
      trips = self._vocabulary.round_trips(texts)
      counts = [trip.tokens for trip in trips]
      for (line, text), trip in zip(self._pending, trips, strict=True):
        self._rewrites.add(line, text, trip)
    for (line, _), count in zip(self._pending, counts, strict=True):
      self._tokens.add(count + 1)
      if count + 1 > self._limit:
        self._cut.add(line)
    self._pending.clear()
    self._pending_characters = 0


class _SplitCounts:
  """Counts everything about one split in one pass over its rows."""

  def __init__(self, name: str, vocabulary: Vocabulary | None, limits: dict[str, int]):
    self._name = name
    self._rows = self._labelled = self._with_rationale = self._mention_checked = 0
    self._vocabulary = vocabulary
    self._tokens = {
      field: _FieldTokens(vocabulary, limit, is_input=field == "input")
      for field, limit in limits.items()
    }
    self._labels = LabelCounter()
    self._instruction = InstructionFinder()
    self._rationale_without_label = LineCounter()
    self._label_not_mentioned = LineCounter()
    self._mid_sentence = LineCounter()

  def add(self, line: int, text: str, label: str | None, rationale: str | None) -> None:
    self._rows += 1
    self._tokens["input"].add(line, text)
    self._instruction.add(line, text)
    if label is not None:
      self._labelled += 1
      self._tokens["label"].add(line, label)
      self._labels.add(label)
    if rationale is not None:
      self._add_rationale(line, label, rationale)

  def close(self) -> None:
    self._instruction.close()

  def _add_rationale(self, line: int, label: str | None, rationale: str) -> None:
    self._with_rationale += 1
    self._tokens["rationale"].add(line, rationale)
    if ends_mid_sentence(rationale):
      self._mid_sentence.add(line)
    if label is None:
      self._rationale_without_label.add(line)
    elif len(label) <= MAX_MENTIONED_CHARACTERS:
      self._mention_checked += 1
      if not mentions(rationale, label):
        self._label_not_mentioned.add(line)

  def result(self, duplicates: Repeats) -> SplitReport:
    return SplitReport(
      name=self._name,
      rows=self._rows,
      labelled=self._labelled,
      with_rationale=self._with_rationale,
      rationale_without_label=self._rationale_without_label.result(),
      duplicates=duplicates,
      lengths={field: tokens.lengths() for field, tokens in self._tokens.items()},
      rewritten={
        field: rewritten
        for field, tokens in self._tokens.items()
        if (rewritten := tokens.rewritten()) is not None
      },
      labels=self._labels.result(self._vocabulary),
      instruction=self._instruction.result(),
      mention_checked=self._mention_checked,
      label_not_mentioned=self._label_not_mentioned.result(),
      mid_sentence=self._mid_sentence.result(),
    )
