"""The figures of a dataset report, as dataclasses."""

import dataclasses
from dataclasses import dataclass
from typing import Any

# The most line numbers that a figure names, and the most texts that it shows.
SHOWN_LINES = 5
SHOWN_TEXTS = 3


@dataclass(frozen=True)
class LineNumbers:
  """A number of rows, and the line numbers of the first of them."""

  count: int
  lines: tuple[int, ...]


@dataclass(frozen=True)
class Repeats:
  """A number of rows, and for the first of them (line, the earlier line that it repeats)."""

  count: int
  lines: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class LengthStatistics:
  """Mean, percentiles and maximum of lengths; all 0 when nothing was counted."""

  count: int
  mean: float
  p50: int
  p90: int
  p99: int
  longest: int


@dataclass(frozen=True)
class LabelStatistics:
  """The distribution of labels.

  Attributes:
    distinct: number of different labels; None if there are more than 1,000.
    are_classes: whether a label has five rows or more on average.
    most_common: (label, rows), the 20 most frequent; empty for free text.
    variants: pairs of labels that differ only in case or spaces.
    same_written: other pairs of labels that the vocabulary writes as the same text.
  """

  distinct: int | None
  are_classes: bool
  most_common: tuple[tuple[str, int], ...]
  variants: tuple[tuple[str, str], ...]
  same_written: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Instruction:
  """The words that most inputs begin or end with.

  Attributes:
    where: "opening" or "closing".
    rows: the rows with these words.
    missing: the rows without them.
  """

  words: str
  where: str
  rows: int
  missing: LineNumbers


@dataclass(frozen=True)
class TextLengths:
  """The lengths of one field.

  Attributes:
    characters: of the text in the file.
    tokens: of the student's sequence: with the end mark, and an input with its task prefix;
      None without a vocabulary.
    limit: the most tokens that are kept, end mark included.
    cut: the rows with more than `limit` tokens; None without a vocabulary.
  """

  characters: LengthStatistics
  tokens: LengthStatistics | None
  limit: int
  cut: LineNumbers | None


@dataclass(frozen=True)
class Rewritten:
  """A text, and the text of its token ids; long ones are excerpts around the first difference."""

  line: int
  text: str
  written: str


@dataclass(frozen=True)
class RewrittenTexts:
  """The texts of one field that the vocabulary cannot write as they are.

  Attributes:
    rows: the rows with such a text.
    spaces: how many differ only in spaces, tabs and line breaks.
    unknown: how many have characters that the vocabulary does not have.
    normalised: the others, such as full-width digits and ligatures.
    examples: the first different ones.
  """

  rows: LineNumbers
  spaces: int
  unknown: int
  normalised: int
  examples: tuple[Rewritten, ...]


@dataclass(frozen=True)
class SplitReport:
  """The figures of the training rows, or of the evaluation rows.

  Attributes:
    rationale_without_label: rows with a rationale and no label.
    duplicates: rows equal to an earlier one in input, label and rationale.
    lengths: by "input", "label", "rationale".
    rewritten: by "label" and "rationale"; empty without a vocabulary.
    mention_checked: number of rationales whose label has at most 100 characters.
    label_not_mentioned: those of them that do not contain the label.
    mid_sentence: rationales that end mid-sentence.
  """

  name: str
  rows: int
  labelled: int
  with_rationale: int
  rationale_without_label: LineNumbers
  duplicates: Repeats
  lengths: dict[str, TextLengths]
  rewritten: dict[str, RewrittenTexts]
  labels: LabelStatistics
  instruction: Instruction | None
  mention_checked: int
  label_not_mentioned: LineNumbers
  mid_sentence: LineNumbers


@dataclass(frozen=True)
class DatasetReport:
  """The figures of a data set.

  Attributes:
    conflicts: training inputs with more than one label.
    overlap: evaluation rows whose input is a training input; None without evaluation rows.
    vocabulary: the vocabulary that counted the tokens; None if they were not counted.
    warnings: one sentence each: the hosted service's limits and advice, and likely mistakes.
  """

  train: SplitReport
  evaluation: SplitReport | None
  conflicts: Repeats
  overlap: Repeats | None
  vocabulary: str | None
  warnings: list[str]

  def to_json(self) -> dict[str, Any]:
    """Returns all figures as JSON types; `dss validate --json` prints them."""
    return dataclasses.asdict(self)
