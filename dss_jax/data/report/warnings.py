"""The warnings of a dataset report: the hosted service's limits and advice, likely mistakes."""

from collections.abc import Iterator

from dss_jax.data.report.figures import DatasetReport, LabelStatistics, SplitReport
from dss_jax.data.report.text import (
  named_lines,
  plural_s,
  quoted,
  rewriting_causes,
  round_trip,
)

# The hosted service's documented limits. It refused more; here they are only warned of.
MAX_TRAIN_ROWS = 10_000
MIN_EVALUATION_ROWS = 10
MAX_EVALUATION_ROWS = 250
# Its advice: 100 or more labelled rows for any kind of task, over 1,000 without labels.
ADVISED_LABELLED_ROWS = 100
ADVISED_UNLABELLED_ROWS = 1_000

_ONE_SIDED_SHARE = 0.95


def report_warnings(report: DatasetReport) -> list[str]:
  """Returns one sentence for each likely problem, the most serious kinds first."""
  warnings = [*_leak_warnings(report), *_size_warnings(report)]
  for split in (report.train, report.evaluation):
    if split is not None and split.rows:
      warnings += [f"{split.name}: {warning}" for warning in _split_warnings(split)]
  return warnings


def _leak_warnings(report: DatasetReport) -> Iterator[str]:
  if report.overlap is not None and report.overlap.count:
    yield (
      f"{_rows(report.overlap.count)} of the evaluation data also in the training data"
      f" ({named_lines(report.overlap)}): the student will look better than it is; remove them"
      " from one of the two"
    )
  if report.conflicts.count:
    yield (
      f"{report.conflicts.count:,} input{plural_s(report.conflicts.count)} with more than one"
      f" label ({named_lines(report.conflicts)}): the student cannot learn both; keep one"
    )
  train, evaluation = report.train.labels, report.evaluation and report.evaluation.labels
  if evaluation and train.are_classes and evaluation.are_classes and _all_shown(train):
    known = {label for label, _ in train.most_common}
    unseen = [label for label, _ in evaluation.most_common if label not in known]
    if unseen:
      named = ", ".join(f'"{label}"' for label in unseen[:5])
      yield f"evaluation labels that no training row has: {named}; the student cannot learn them"


def _size_warnings(report: DatasetReport) -> Iterator[str]:
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
    yield f"{_rows(missing)} of the evaluation data without a label: their answers are not checked"


def _split_warnings(split: SplitReport) -> Iterator[str]:
  if split.duplicates.count:
    yield (
      f"{_rows(split.duplicates.count)} equal to an earlier one"
      f" ({named_lines(split.duplicates)}): each counts twice; delete the copies"
    )
  for field, lengths in split.lengths.items():
    if lengths.cut is not None and lengths.cut.count:
      yield (
        f"{_rows(lengths.cut.count)} whose {field} is longer than {lengths.limit:,} tokens"
        f" ({named_lines(lengths.cut)}): the rest is cut off; shorten them or raise"
        f" --max-{'input' if field == 'input' else 'output'}-tokens"
      )
  yield from _rewriting_warnings(split)
  yield from _instruction_warnings(split)
  yield from _label_warnings(split)
  yield from _rationale_warnings(split)


def _rewriting_warnings(split: SplitReport) -> Iterator[str]:
  for field, rewritten in split.rewritten.items():
    if rewritten.rows.count:
      examples = "; ".join(round_trip(one.text, one.written) for one in rewritten.examples)
      yield (
        f"{_rows(rewritten.rows.count)} whose {field} cannot be written with the vocabulary as it"
        f" is ({named_lines(rewritten.rows)}; {rewriting_causes(rewritten)}):"
        f" {examples}; the student learns the written form"
        f" and is compared with it; change the {field}s, or choose another --vocabulary (bytes"
        " writes every text)"
      )
  for one, other in split.labels.same_written:
    yield (
      f"the vocabulary writes the labels {quoted(one)} and {quoted(other)} alike: the student"
      " cannot tell them apart; rename one, or choose another --vocabulary"
    )


def _instruction_warnings(split: SplitReport) -> Iterator[str]:
  found = split.instruction
  if found is not None and found.missing.count:
    begin = "begin" if found.where == "opening" else "end"
    yield (
      f"{_rows(found.missing.count)} without the instruction that most rows {begin} with,"
      f' "{found.words}" ({named_lines(found.missing)}): give all rows the form that the'
      " student will see in production"
    )
  if found is None and split.labels.are_classes and split.rows > 1:
    yield (
      "no instruction is shared by most rows: state the question and the possible labels in each"
      " input; without them quality drops, most of all on small data sets"
    )


def _label_warnings(split: SplitReport) -> Iterator[str]:
  labels = split.labels
  for one, other in labels.variants:
    yield (
      f'the labels "{one}" and "{other}" differ only in case, spaces or invisible characters:'
      " spell them the same"
    )
  if labels.are_classes:
    label, count = labels.most_common[0]
    if labels.distinct == 1:
      yield f'all labels are "{label}": there is nothing to learn; add rows with other labels'
    elif count > _ONE_SIDED_SHARE * split.labelled:
      yield (
        f'{count / split.labelled:.1%} of the labels are "{label}": a student that always gives'
        " this label looks accurate; add rows with other labels"
      )


def _rationale_warnings(split: SplitReport) -> Iterator[str]:
  without = split.rationale_without_label
  if without.count:
    yield (
      f"{_rows(without.count)} with a rationale and no label ({named_lines(without)}): the"
      " rationale may argue for another label than the teacher will give; add the label"
    )
  # If most rationales do so, it is the style of the data and no mistake.
  unmentioned = split.label_not_mentioned
  if unmentioned.count and 2 * unmentioned.count < split.mention_checked:
    yield (
      f"{_rows(unmentioned.count)} whose rationale never mentions the label"
      f" ({named_lines(unmentioned)}): it may argue for another one; read a few"
    )
  broken = split.mid_sentence
  if broken.count and 2 * broken.count < split.with_rationale:
    yield (
      f"{_rows(broken.count)} whose rationale ends mid-sentence ({named_lines(broken)}): it may"
      " have been cut off; allow the teacher longer answers"
    )


def _all_shown(labels: LabelStatistics) -> bool:
  return labels.distinct == len(labels.most_common)


def _rows(count: int) -> str:
  return f"{count:,} row{plural_s(count)}"
