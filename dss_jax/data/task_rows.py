"""The rows of a task's split: published rows with the teacher's recorded answers."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from dss_jax.data.published_rows import RowReader, read_objects
from dss_jax.data.records import Row
from dss_jax.data.task_files import (
  Answer,
  Split,
  TaskDefinition,
  UnparsableAnswer,
  failure_of,
  percent,
)
from dss_jax.data.texts import is_blank
from dss_jax.errors import UserError
from dss_jax.storage.files import PathLike, is_url, join

LabelSource = Literal["gold", "teacher"]


class ParseFailure(NamedTuple):
  """A teacher's text that does not parse into rationale and answer, and its place."""

  file: str
  line: int
  reason: str


@dataclasses.dataclass
class ParseReport:
  """The results of parsing one split's recorded teacher outputs, as numbers of rows.

  Attributes:
    rows: rows of the split.
    left_out: rows for which the task's to_row gives None; they are not among `rows`.
    unlabelled: rows without a published label.
    answered: rows with a recorded teacher output.
    parsed: answered rows whose output is a rationale followed by an answer.
    undecided: parsed rows whose answer is not a single label.
    agreeing: parsed rows whose label is the published (gold) one.
    dropped: rows that were not loaded because they have neither label nor rationale.
    failures: the outputs that do not parse.
  """

  rows: int = 0
  left_out: int = 0
  unlabelled: int = 0
  answered: int = 0
  parsed: int = 0
  undecided: int = 0
  agreeing: int = 0
  dropped: int = 0
  failures: list[ParseFailure] = dataclasses.field(default_factory=list)

  def to_json(self) -> dict[str, Any]:
    """Returns the report as JSON values, with percentages of the answered rows."""
    return {
      **{
        field.name: getattr(self, field.name)
        for field in dataclasses.fields(self)
        if field.name != "failures"
      },
      "parsed_percent": percent(self.parsed, self.answered),
      "agreeing_percent": percent(self.agreeing, self.answered),
      "failures": [failure._asdict() for failure in self.failures],
    }


class TaskRows(NamedTuple):
  """The rows of one split, in the file's order, and the report on the teacher's outputs."""

  rows: list[Row]
  report: ParseReport


def load_rows(
  task: TaskDefinition,
  split: str,
  data_dir: PathLike,
  label_source: LabelSource = "gold",
  *,
  needs_answers: bool = True,
  labels_as_text: bool = False,
) -> TaskRows:
  """Reads one split of a task from the published files under `data_dir`.

  Rationales are the teacher's. If the teacher's text does not parse, the row has no rationale
  (a blank one is never trained on) and the report lists it. Labels are the published ones, or
  with label_source="teacher" the teacher's, but only in the train split: evaluation always
  uses gold labels. With the teacher's labels, a row whose text does not parse has no target
  left; it is dropped and counted. A row with an undecided answer keeps its rationale only.

  Args:
    needs_answers: if False, a local file of recorded outputs may be missing; the rows then
      have no rationale from a teacher.
    labels_as_text: whether labels that are numbers or booleans are taken as their text.

  Raises:
    UserError: no such split, file or recorded answer; a row that is not JSON or that the
      task file cannot read; answers that do not fit their rows.
  """
  report = ParseReport()
  rows = []
  for _, row in _split_rows(
    task, split, data_dir, label_source, report, needs_answers, labels_as_text
  ):
    if not row.get("output_text") and not row.get("rationale"):
      report.dropped += 1
      continue
    rows.append(row)
  return TaskRows(rows, report)


def rows_to_annotate(
  task: TaskDefinition,
  data_dir: PathLike,
  label_source: LabelSource = "gold",
  labels_as_text: bool = False,
) -> list[tuple[int, Row]]:
  """Returns (index in the published file, row) of the train split, for a teacher to complete.

  As load_rows, but rows with neither label nor rationale are kept, and a local file of recorded
  outputs may be missing unless the labels come from it.
  """
  report = ParseReport()
  return list(_split_rows(task, "train", data_dir, label_source, report, False, labels_as_text))


def _split_rows(
  task: TaskDefinition,
  split: str,
  data_dir: PathLike,
  label_source: LabelSource,
  report: ParseReport,
  needs_answers: bool,
  labels_as_text: bool,
) -> Iterator[tuple[int, Row]]:
  """Yields (index in the published file, row) of a split, and counts in `report`."""
  if split not in task.splits:
    raise UserError(
      f"task {task.name} has no split {split!r}; it has {', '.join(sorted(task.splits))}"
    )
  chosen = task.splits[split]
  from_teacher = label_source == "teacher" and split == "train"
  if from_teacher and chosen.answers is None:
    raise UserError(
      f"task {task.name} has no recorded teacher outputs for its {split} split;"
      " give --label-source gold, or name an answers file in the task's Split"
    )
  rows_path = _data_file(data_dir, chosen.rows, task)
  published = list(read_objects(rows_path))
  answers = None
  if needs_answers or from_teacher or _has_answers(chosen, data_dir):
    answers = _read_answers(task, chosen, data_dir, len(published))
  reader = RowReader(task, rows_path, labels_as_text)
  for index, (line, values) in enumerate(published):
    if not _has(chosen, index):
      continue
    row = reader.row(line, values)
    if row is None:
      continue
    report.rows += 1
    if answers is not None:
      if index not in answers.texts:
        raise UserError(
          f'{answers.path}: no line has the "index" {index} of {rows_path}:{line}; every row'
          " needs one answer, so add the line or leave the row out in the task's Split"
        )
      answer = _parse(task, answers, index, report)
      _count_agreement(task, row, answer, report)
      row = _with_answer(row, answer, from_teacher)
    yield index, row
  report.left_out, report.unlabelled = len(reader.left_out), len(reader.unlabelled)
  if not report.rows:
    left_out = f", {report.left_out} of them left out by to_row" if report.left_out else ""
    raise UserError(
      f"{rows_path}: the {split} split of task {task.name} has no rows, as the file has"
      f" {len(published)}{left_out}; check the file, or the Split of the task"
    )
  reader.say()


class _Answers(NamedTuple):
  """Recorded teacher outputs: row index -> (line in the answers file, text)."""

  path: str
  texts: dict[int, tuple[int, str]]


def _place(data_dir: PathLike, name: str) -> str:
  """Returns the path or URL of a file of the data directory."""
  return join(os.path.expanduser(data_dir), name)


def _has_answers(split: Split, data_dir: PathLike) -> bool:
  """Returns False if a split has no recorded outputs or their local file is missing."""
  if split.answers is None:
    return False
  path = _place(data_dir, split.answers)
  return is_url(path) or os.path.exists(path)


def _data_file(data_dir: PathLike, name: str, task: TaskDefinition) -> str:
  """Returns the path or URL of a published file; raises UserError if a local file is missing."""
  path = _place(data_dir, name)
  if not is_url(path) and not os.path.exists(path):
    raise UserError(
      f"{path}: task {task.name} needs this file and it is not there;"
      " point --data-dir to the folder with the published files"
    )
  return path


def _read_answers(
  task: TaskDefinition, split: Split, data_dir: PathLike, num_rows: int
) -> _Answers | None:
  """Reads a split's recorded outputs; each index must be unique and within the rows' file."""
  if split.answers is None:
    return None
  path = _data_file(data_dir, split.answers, task)
  texts: dict[int, tuple[int, str]] = {}
  for line, values in read_objects(path):
    index, text = values.get("index"), values.get("llm_output")
    if type(index) is not int or not isinstance(text, str):
      raise UserError(
        f'{path}:{line}: a recorded answer must be {{"index": a whole number,'
        f' "llm_output": text}}, but this line has the keys {sorted(values)}'
      )
    if not 0 <= index < num_rows:
      raise UserError(
        f'{path}:{line}: "index" {index} is outside the {num_rows} rows of {split.rows};'
        " the two files must belong together"
      )
    if index in texts:
      raise UserError(
        f'{path}:{line}: "index" {index} is already in line {texts[index][0]};'
        " keep one answer a row"
      )
    # As teachers/recorded.py does: half a character cannot be tokenised.
    texts[index] = (line, text.encode("utf-8", "replace").decode("utf-8"))
  return _Answers(path, texts)


def _has(split: Split, index: int) -> bool:
  try:
    return split.has(index)
  except Exception as error:
    raise UserError(
      f"the task's Split.keep failed on row {index} ({failure_of(split.keep, error)}); correct it"
    ) from error


def _parse(
  task: TaskDefinition, answers: _Answers, index: int, report: ParseReport
) -> Answer | None:
  """Returns the teacher's answer to row `index`, or None if its text does not parse."""
  line, text = answers.texts[index]
  report.answered += 1
  try:
    answer = _checked_answer(task.parse_answer(text))
  except UnparsableAnswer as error:
    report.failures.append(ParseFailure(answers.path, line, str(error)))
    return None
  except (Exception, SystemExit) as error:
    raise UserError(
      f"{answers.path}:{line}: parse_answer of task {task.name} raised"
      f" {failure_of(task.parse_answer, error)}; raise UnparsableAnswer for text that does not"
      " parse"
    ) from error
  report.parsed += 1
  report.undecided += answer.label is None
  return answer


def _checked_answer(answer: Any) -> Answer:
  """Returns the answer of a task's parser; raises UnparsableAnswer, or TypeError for no answer."""
  if answer is None:
    raise UnparsableAnswer("parse_answer gives None")
  if not isinstance(answer, tuple) or len(answer) != 2:
    raise TypeError(f"it gives {answer!r:.80}, not an Answer")
  rationale, label = answer
  if not isinstance(rationale, str) or not isinstance(label, str | None):
    raise TypeError(f"it gives {answer!r:.80}, but an Answer has a text and a text or None")
  if is_blank(rationale):
    raise UnparsableAnswer("there is no reasoning before the answer")
  return Answer(rationale, None if label is None or is_blank(label) else label)


def _count_agreement(
  task: TaskDefinition, row: Row, answer: Answer | None, report: ParseReport
) -> None:
  gold = row.get("output_text")
  if answer is not None and answer.label is not None and gold:
    try:
      report.agreeing += bool(task.same_label(answer.label, gold))
    except (Exception, SystemExit) as error:
      raise UserError(
        f"same_label of task {task.name} raised {failure_of(task.same_label, error)}, for the"
        f" labels {answer.label!r} and {gold!r}; correct it to give True or False"
      ) from error


def _with_answer(row: Row, answer: Answer | None, from_teacher: bool) -> Row:
  """Returns the row with the teacher's rationale and, if `from_teacher`, the teacher's label."""
  texts = {
    "rationale": answer.rationale if answer else None,
    "output_text": (answer.label if answer else None) if from_teacher else row.get("output_text"),
  }
  return {
    **{key: value for key, value in row.items() if key not in texts},
    **{key: value for key, value in texts.items() if value},
  }
