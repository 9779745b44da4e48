"""What a dataset report warns of: limits and advice of the hosted service, likely mistakes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dss_jax.data.report.counters import LabelStatistics, Lines
from dss_jax.data.report.duplicates import Repeats

if TYPE_CHECKING:
  from dss_jax.data.report.build import DatasetReport, SplitReport

# The hosted service's documented limits; beyond them is a warning here, not a wall.
MAX_TRAIN_ROWS = 10_000
MIN_EVALUATION_ROWS = 10
MAX_EVALUATION_ROWS = 250
# Its advice: 100 or more labelled rows for any kind of task, over 1,000 without labels.
ADVISED_LABELLED_ROWS = 100
ADVISED_UNLABELLED_ROWS = 1_000

_ONE_SIDED_SHARE = 0.95


def report_warnings(report: "DatasetReport") -> list[str]:
  """One sentence for each thing worth a look, the gravest kinds first."""
  warnings = [*_of_leaks(report), *_of_sizes(report)]
  for split in (report.train, report.evaluation):
    if split is not None and split.rows:
      warnings += [f"{split.name}: {warning}" for warning in _of_split(split)]
  return warnings


def _of_leaks(report: "DatasetReport") -> Iterator[str]:
  if report.overlap is not None and report.overlap.count:
    lines = shown_lines(report.overlap)
    yield (
      f"{_rows(report.overlap.count)} of the evaluation data also in the training data"
      f" ({lines}): the evaluation will look better than it is; take them out of one of the two"
    )
  if report.conflicts.count:
    yield (
      f"{report.conflicts.count:,} input{_s(report.conflicts.count)} with more than one label"
      f" ({shown_lines(report.conflicts)}): the student cannot learn both; keep one"
    )
  train, evaluation = report.train.labels, report.evaluation and report.evaluation.labels
  if evaluation and train.are_classes and evaluation.are_classes and _all_shown(train):
    known = {label for label, _ in train.most_common}
    unseen = [label for label, _ in evaluation.most_common if label not in known]
    if unseen:
      named = ", ".join(f'"{label}"' for label in unseen[:5])
      yield f"evaluation labels that no training row has: {named}; the student cannot know them"


def _of_sizes(report: "DatasetReport") -> Iterator[str]:
  train, evaluation = report.train, report.evaluation
  unlabelled = train.rows - train.labelled
  if train.rows > MAX_TRAIN_ROWS:
    yield (
      f"{train.rows:,} training rows: the hosted service took at most {MAX_TRAIN_ROWS:,};"
      " all of them are used here"
    )
  if train.labelled and not unlabelled and train.rows < ADVISED_LABELLED_ROWS:
    yield (
      f"{_rows(train.rows)} to train on: {ADVISED_LABELLED_ROWS} or more are advised for"
      " classification, summarisation and extractive question answering"
    )
  if unlabelled and unlabelled <= ADVISED_UNLABELLED_ROWS:
    yield (
      f"{_rows(unlabelled)} without a label, which the teacher has to label: more than"
      f" {ADVISED_UNLABELLED_ROWS:,} are advised where labels are missing"
    )
  if evaluation is None:
    return
  if not MIN_EVALUATION_ROWS <= evaluation.rows <= MAX_EVALUATION_ROWS:
    yield (
      f"{_rows(evaluation.rows)} to evaluate on: the hosted service took {MIN_EVALUATION_ROWS}"
      f" to {MAX_EVALUATION_ROWS}; few rows make the figures uncertain, many make every"
      " evaluation slow"
    )
  if evaluation.labelled < evaluation.rows:
    missing = evaluation.rows - evaluation.labelled
    yield f"{_rows(missing)} of the evaluation data without a label: nothing can be held against it"


def _of_split(split: "SplitReport") -> Iterator[str]:
  if split.duplicates.count:
    yield (
      f"{_rows(split.duplicates.count)} equal to an earlier one"
      f" ({shown_lines(split.duplicates)}): each counts twice; delete the copies"
    )
  for field, lengths in split.lengths.items():
    if lengths.cut is not None and lengths.cut.count:
      yield (
        f"{_rows(lengths.cut.count)} whose {field} is longer than {lengths.limit:,} tokens"
        f" ({shown_lines(lengths.cut)}): the rest is cut off; shorten them or raise"
        f" --max-{'input' if field == 'input' else 'output'}-tokens"
      )
  yield from _of_instruction(split)
  yield from _of_labels(split)
  yield from _of_rationales(split)


def _of_instruction(split: "SplitReport") -> Iterator[str]:
  found = split.instruction
  if found is not None and found.missing.count:
    place = "open with" if found.where == "opening" else "close with"
    yield (
      f"{_rows(found.missing.count)} without the instruction that most rows {place},"
      f' "{found.words}" ({shown_lines(found.missing)}): give all rows the form that the'
      " student will see in production"
    )
  if found is None and split.labels.are_classes and split.rows > 1:
    yield (
      "no instruction is shared by most rows: say in each input what is asked and which labels"
      " there are, or quality drops, most of all on small data sets"
    )


def _of_labels(split: "SplitReport") -> Iterator[str]:
  labels = split.labels
  for one, other in labels.variants:
    yield f'the labels "{one}" and "{other}" differ in case or spaces alone: spell them alike'
  if labels.are_classes:
    label, count = labels.most_common[0]
    if labels.distinct == 1:
      yield f'all labels are "{label}": there is nothing to tell apart'
    elif count > _ONE_SIDED_SHARE * split.labelled:
      yield (
        f'{count / split.labelled:.1%} of the labels are "{label}": a student that always says'
        " so looks good; add rows of the others"
      )


def _of_rationales(split: "SplitReport") -> Iterator[str]:
  without = split.rationale_without_label
  if without.count:
    yield (
      f"{_rows(without.count)} with a rationale and no label ({shown_lines(without)}): the"
      " rationale may argue for another label than the teacher will give; add the label"
    )
  # Where most rationales do not, it is the data's style and no mistake of a few rows.
  silent = split.label_not_mentioned
  if silent.count and 2 * silent.count < split.mention_checked:
    yield (
      f"{_rows(silent.count)} whose rationale never mentions the label ({shown_lines(silent)}):"
      " it may argue for another one; read a few"
    )
  broken = split.mid_sentence
  if broken.count and 2 * broken.count < split.with_rationale:
    yield (
      f"{_rows(broken.count)} whose rationale ends mid-sentence ({shown_lines(broken)}): it may"
      " have been cut off; give the teacher more room"
    )


def shown_lines(found: Lines | Repeats) -> str:
  """`line 3`, or `lines 3, 17, ...` when there are more than are named."""
  numbers = [line[0] if isinstance(line, tuple) else line for line in found.lines]
  named = ", ".join(map(str, numbers))
  more = ", ..." if found.count > len(numbers) else ""
  return f"line{_s(found.count)} {named}{more}"


def _all_shown(labels: LabelStatistics) -> bool:
  return labels.distinct == len(labels.most_common)


def _rows(count: int) -> str:
  return f"{count:,} row{_s(count)}"


def _s(count: int) -> str:
  return "" if count == 1 else "s"
