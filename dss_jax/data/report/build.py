"""The dataset report: what a set of rows holds, and what in it is likely to hurt a student."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dss_jax.data.rationale_checks import ends_mid_sentence, mentions
from dss_jax.data.records import ProblemTally, Row, RowProblem, empty_file_problem, scan_rows
from dss_jax.data.report.counters import (
  Instruction,
  InstructionFinder,
  LabelCounter,
  LabelStatistics,
  LengthHistogram,
  LengthStatistics,
  LineCounter,
  Lines,
)
from dss_jax.data.report.duplicates import Repeats, RowHashes
from dss_jax.data.report.warnings import report_warnings, shown_lines
from dss_jax.data.vocabularies import Vocabulary
from dss_jax.errors import UserError
from dss_jax.storage.files import PathLike

# Whether a short label is named in its rationale can be told; a summary never is.
MAX_MENTIONED_CHARACTERS = 100

_PREFIXES = ("predict: ", "explain: ")
_BATCH_CHARACTERS = 2**20
_BATCH_TEXTS = 1024


@dataclass(frozen=True)
class TextLengths:
  """How long one field is.

  Attributes:
    characters: of the text as it stands.
    tokens: as the student sees it: an input with its task prefix, each with its end mark;
      None without a vocabulary.
    limit: the most tokens that are kept, end mark included.
    cut: the rows with more than `limit` tokens; None without a vocabulary.
  """

  characters: LengthStatistics
  tokens: LengthStatistics | None
  limit: int
  cut: Lines | None


@dataclass(frozen=True)
class SplitReport:
  """What the training rows, or the evaluation rows, hold.

  Attributes:
    rationale_without_label: rows with a rationale and no label.
    duplicates: rows equal to an earlier one in input, label and rationale.
    lengths: by "input", "label", "rationale".
    instruction: the words that most rows share at one end, and the rows without them.
    mention_checked: rationales whose label has 100 characters or fewer.
    label_not_mentioned: those of them that never name it.
    mid_sentence: rationales that break off.
  """

  name: str
  rows: int
  labelled: int
  with_rationale: int
  rationale_without_label: Lines
  duplicates: Repeats
  lengths: dict[str, TextLengths]
  labels: LabelStatistics
  instruction: Instruction | None
  mention_checked: int
  label_not_mentioned: Lines
  mid_sentence: Lines


@dataclass(frozen=True)
class DatasetReport:
  """The figures of a data set.

  Attributes:
    conflicts: training inputs that stand there with more than one label.
    overlap: evaluation rows whose input is a training input; None without evaluation rows.
    vocabulary: what the tokens were counted with, None if they were not.
    warnings: one sentence each: limits and advice of the service, and likely mistakes.
  """

  train: SplitReport
  evaluation: SplitReport | None
  conflicts: Repeats
  overlap: Repeats | None
  vocabulary: str | None
  warnings: list[str]

  def to_json(self) -> dict[str, Any]:
    """All figures as JSON types; `dss validate --json` prints this."""
    return dataclasses.asdict(self)

  def to_text(self) -> str:
    """The report for a terminal, warnings last."""
    lines = _split_text(self.train)
    lines.append(_row("conflicting labels", _repeats(self.conflicts, "contradicts line")))
    if self.evaluation is not None and self.overlap is not None:
      lines += ["", *_split_text(self.evaluation)]
      lines.append(_row("also in training", _repeats(self.overlap, "is training line")))
    if self.warnings:
      lines += ["", "warnings", *(f"  - {warning}" for warning in self.warnings)]
    return "\n".join(lines) + "\n"


def dataset_report(
  path: PathLike,
  *,
  eval_path: PathLike | None = None,
  vocabulary: Vocabulary | None = None,
  max_input_tokens: int = 7168,
  max_output_tokens: int = 1024,
) -> DatasetReport:
  """The report on a JSONL file and, if given, its evaluation file; constant memory.

  Raises:
    UserError: a file cannot be read, has no row, or has bad lines: all lines of both files
      in one error, after both have been read to the end.
  """
  problems = ProblemTally()
  evaluation = None if eval_path is None else (str(eval_path), _good_rows(eval_path, problems))
  report = _report(
    (str(path), _good_rows(path, problems)),
    evaluation,
    vocabulary,
    max_input_tokens,
    max_output_tokens,
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
  eval_rows: Iterable[tuple[int, Row]] | None = None,
  eval_name: str = "evaluation",
  vocabulary: Vocabulary | None = None,
  max_input_tokens: int = 7168,
  max_output_tokens: int = 1024,
) -> DatasetReport:
  """The report on (line number, row) pairs that come from anywhere; they are not checked."""
  evaluation = None if eval_rows is None else (eval_name, eval_rows)
  return _report((name, rows), evaluation, vocabulary, max_input_tokens, max_output_tokens)


_Source = tuple[str, Iterable[tuple[int, Row]]]


def _report(
  train: _Source,
  evaluation: _Source | None,
  vocabulary: Vocabulary | None,
  max_input_tokens: int,
  max_output_tokens: int,
) -> DatasetReport:
  limits = {
    "input": max_input_tokens,
    "label": max_output_tokens,
    "rationale": max_output_tokens,
  }
  counts = []
  with contextlib.ExitStack() as stack:
    hashes = stack.enter_context(RowHashes())
    for split, source in enumerate((train, evaluation)):
      if source is None:
        continue
      name, rows = source
      split_counts = stack.enter_context(contextlib.closing(_SplitCounts(name, vocabulary, limits)))
      for line, row in rows:
        text, label, rationale = row["input_text"], row.get("output_text"), row.get("rationale")
        split_counts.add(line, text, label, rationale)
        hashes.add(line, text, label, rationale, split)
      counts.append(split_counts)
    repeats = hashes.settle()
    report = DatasetReport(
      train=counts[0].result(repeats.duplicates),
      evaluation=counts[1].result(repeats.evaluation_duplicates) if evaluation else None,
      conflicts=repeats.conflicts,
      overlap=repeats.overlap if evaluation else None,
      vocabulary=None if vocabulary is None else vocabulary.spec,
      warnings=[],
    )
  report.warnings.extend(report_warnings(report))
  return report


def _good_rows(path: PathLike, problems: ProblemTally) -> Iterator[tuple[int, Row]]:
  for item in scan_rows(path):
    if isinstance(item, RowProblem):
      problems.add(item)
    else:
      yield item


class _FieldLengths:
  """LengthStatistics of one field; texts wait to be tokenised many at a time."""

  def __init__(self, vocabulary: Vocabulary | None, prefixes: tuple[str, ...], limit: int):
    self._vocabulary = vocabulary
    self._limit = limit
    self._prefix = ""
    if vocabulary is not None and prefixes:
      counts = vocabulary.count_tokens(prefixes)
      # The longer prefix: a row is not cut if neither of its two sequences is.
      self._prefix = prefixes[counts.index(max(counts))]
    self._characters = LengthHistogram()
    self._tokens = LengthHistogram()
    self._cut = LineCounter()
    self._waiting: list[tuple[int, str]] = []
    self._waiting_characters = 0

  def add(self, line: int, text: str) -> None:
    self._characters.add(len(text))
    if self._vocabulary is None:
      return
    self._waiting.append((line, self._prefix + text))
    self._waiting_characters += len(text)
    if self._waiting_characters > _BATCH_CHARACTERS or len(self._waiting) >= _BATCH_TEXTS:
      self._count_waiting()

  def result(self) -> TextLengths:
    if self._vocabulary is None:
      return TextLengths(self._characters.result(), None, self._limit, None)
    self._count_waiting()
    return TextLengths(
      self._characters.result(), self._tokens.result(), self._limit, self._cut.result()
    )

  def _count_waiting(self) -> None:
    assert self._vocabulary is not None
    counts = self._vocabulary.count_tokens([text for _, text in self._waiting])
    for (line, _), count in zip(self._waiting, counts, strict=True):
      self._tokens.add(count + 1)
      if count + 1 > self._limit:
        self._cut.add(line)
    self._waiting.clear()
    self._waiting_characters = 0


class _SplitCounts:
  """Everything counted of one split while its rows pass by."""

  def __init__(self, name: str, vocabulary: Vocabulary | None, limits: dict[str, int]):
    self._name = name
    self._rows = self._labelled = self._with_rationale = self._mention_checked = 0
    self._lengths = {
      field: _FieldLengths(vocabulary, _PREFIXES if field == "input" else (), limit)
      for field, limit in limits.items()
    }
    self._labels = LabelCounter()
    self._instruction = InstructionFinder()
    self._rationale_without_label = LineCounter()
    self._label_not_mentioned = LineCounter()
    self._mid_sentence = LineCounter()

  def add(self, line: int, text: str, label: str | None, rationale: str | None) -> None:
    self._rows += 1
    self._lengths["input"].add(line, text)
    self._instruction.add(line, text)
    if label is not None:
      self._labelled += 1
      self._lengths["label"].add(line, label)
      self._labels.add(label)
    if rationale is not None:
      self._add_rationale(line, label, rationale)

  def close(self) -> None:
    self._instruction.close()

  def _add_rationale(self, line: int, label: str | None, rationale: str) -> None:
    self._with_rationale += 1
    self._lengths["rationale"].add(line, rationale)
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
      lengths={field: lengths.result() for field, lengths in self._lengths.items()},
      labels=self._labels.result(),
      instruction=self._instruction.result(),
      mention_checked=self._mention_checked,
      label_not_mentioned=self._label_not_mentioned.result(),
      mid_sentence=self._mid_sentence.result(),
    )


def _split_text(split: SplitReport) -> list[str]:
  lines = [split.name, _row("rows", f"{split.rows:,}")]
  lines.append(_row("labelled", _share(split.labelled, split.rows)))
  lines.append(_row("with rationale", _share(split.with_rationale, split.rows)))
  if split.rationale_without_label.count:
    lines.append(_row("rationale, no label", _lines(split.rationale_without_label)))
  lines.append(_row("duplicate rows", _repeats(split.duplicates, "repeats line")))
  for field, lengths in split.lengths.items():
    shown = lengths.tokens or lengths.characters
    if shown.count:
      unit = "tokens" if lengths.tokens else "characters"
      cut = "" if lengths.cut is None else f"; cut at {lengths.limit:,}: {_lines(lengths.cut)}"
      figures = f"50 % {shown.p50:,}, 90 % {shown.p90:,}, 99 % {shown.p99:,}"
      lines.append(_row(f"{field} {unit}", f"{figures}, longest {shown.longest:,}{cut}"))
  if split.labelled:
    lines.append(_row("labels", _labels(split.labels, split.labelled)))
  if split.instruction is None:
    lines.append(_row("instruction", "none: no opening or closing words are shared by most rows"))
  else:
    found = split.instruction
    lines.append(_row("instruction", f'{found.where} "{found.words}": {found.rows:,} rows'))
    lines.append(_row("  rows without it", _lines(found.missing)))
  if split.with_rationale:
    without = f"{_lines(split.label_not_mentioned)} of {split.mention_checked:,} checked"
    lines.append(_row("label not mentioned", without))
    lines.append(_row("ends mid-sentence", _lines(split.mid_sentence)))
  return lines


def _row(title: str, value: str) -> str:
  return f"  {title:<21}{value}"


def _share(count: int, total: int) -> str:
  return f"{count:,} ({count / max(total, 1):.1%})"


def _lines(found: Lines) -> str:
  return f"{found.count:,} ({shown_lines(found)})" if found.count else "0"


def _repeats(found: Repeats, verb: str) -> str:
  pairs = [f"line {line} {verb} {earlier}" for line, earlier in found.lines]
  more = ["..."] if found.count > len(pairs) else []
  return f"{found.count:,} ({', '.join(pairs + more)})" if found.count else "0"


def _labels(labels: LabelStatistics, labelled: int) -> str:
  if not labels.are_classes:
    number = "over 1,000" if labels.distinct is None else f"{labels.distinct:,}"
    return f"free text, {number} different"
  shown = [f'"{label}" {count / labelled:.1%}' for label, count in labels.most_common]
  more = ["..."] if labels.distinct and labels.distinct > len(shown) else []
  return f"{labels.distinct:,} different: {', '.join(shown + more)}"
