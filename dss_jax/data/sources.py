"""Sources of rows: a JSONL file or a split of a task, with their digest."""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from dss_jax.data.records import Row, read_rows
from dss_jax.data.task_files import Metric, TaskDefinition, accuracy
from dss_jax.data.task_metrics import task_figures
from dss_jax.data.task_rows import LabelSource, load_rows
from dss_jax.data.texts import is_blank, is_unicode
from dss_jax.storage.files import PathLike

PREDICT_PREFIX = "predict: "
EXPLAIN_PREFIX = "explain: "


class RowsSummary(NamedTuple):
  """The digest of rows and their numbers.

  Attributes:
    digest: SHA-256 over input, label and rationale of all rows in order.
    rows: number of rows.
    labelled: rows with a label ("output_text").
    with_rationale: rows with a rationale.
    unusable: rows with neither.
  """

  digest: str
  rows: int
  labelled: int
  with_rationale: int
  unusable: int


@dataclasses.dataclass(frozen=True)
class RowSource:
  """Rows to train or evaluate on.

  Attributes:
    name: the name of the SeqIO tasks: letters, digits, `_` and `.`.
    rows: an iterable that yields the same rows each time.
    summary: summarise(rows).
    metric: (targets, predictions) of labels -> {name: figure}.
    report: the origin of the rows, as JSON values.
    given_rows: the rows of the file, if `rows` has more (see TrainingRows).
    prefixes: of the input for the label, and of that for the rationale.
  """

  name: str
  rows: Iterable[Row]
  summary: RowsSummary
  metric: Metric
  report: dict[str, Any]
  given_rows: Iterable[Row] | None = None
  prefixes: tuple[str, str] = (PREDICT_PREFIX, EXPLAIN_PREFIX)

  @property
  def digest(self) -> str:
    return self.summary.digest


@dataclasses.dataclass(frozen=True)
class FileRows:
  """The rows of a JSONL file, read again for each iteration, never all in memory."""

  path: PathLike
  labels_as_text: bool = False

  def __iter__(self) -> Iterator[Row]:
    return read_rows(self.path, self.labels_as_text)


@dataclasses.dataclass(frozen=True)
class TrainingRows:
  """FileRows, with an additional row for each further rationale of a row.

  A row with several "rationales" from `dss annotate` thus trains its label once and each
  rationale once. The additional rows have the row's provenance, whose agreement may weight them.
  """

  path: PathLike
  labels_as_text: bool = False

  def __iter__(self) -> Iterator[Row]:
    for row in read_rows(self.path, self.labels_as_text):
      yield row
      further = row.get("rationales")
      if "rationale" not in row or not isinstance(further, list):
        continue
      for rationale in further:
        is_text = isinstance(rationale, str) and is_unicode(rationale) and not is_blank(rationale)
        if is_text and rationale != row["rationale"]:
          provenance = {"provenance": row["provenance"]} if "provenance" in row else {}
          yield {"input_text": row["input_text"], "rationale": rationale, **provenance}


def summarise(rows: Iterable[Row]) -> RowsSummary:
  """Returns the digest and counts of rows. The digest ignores all other keys."""
  digest = hashlib.sha256()
  count = labelled = with_rationale = unusable = 0
  for row in rows:
    label, rationale = row.get("output_text"), row.get("rationale")
    count += 1
    labelled += bool(label)
    with_rationale += bool(rationale)
    unusable += not label and not rationale
    # ASCII JSON has no line feed, so different lists of rows give different bytes.
    line = json.dumps([row["input_text"], label, rationale], separators=(",", ":"))
    digest.update(line.encode("ascii") + b"\n")
  return RowsSummary(digest.hexdigest(), count, labelled, with_rationale, unusable)


def source_from_rows(
  name: str,
  rows: Iterable[Row],
  metric: Metric = accuracy,
  report: dict[str, Any] | None = None,
) -> RowSource:
  """Returns a source of rows; characters of the name that SeqIO forbids become `_`."""
  summary = summarise(rows)
  counts = {key: value for key, value in summary._asdict().items() if key != "digest"}
  return RowSource(
    name=re.sub(r"[^A-Za-z0-9_.]+", "_", name) or "rows",
    rows=rows,
    summary=summary,
    metric=metric,
    report={**counts, **(report or {})},
  )


def source_from_file(path: PathLike, labels_as_text: bool = False) -> RowSource:
  """Returns the rows of a JSONL file as a source named after it, with exact match as the metric.

  The file is read once here, for its digest, and once for each later use.

  Raises:
    UserError: the file cannot be read, or has a line that is not a row.
  """
  stem = os.path.basename(os.fspath(path)).split(".")[0]
  rows = FileRows(path, labels_as_text)
  return source_from_rows(stem, rows, report={"file": os.fspath(path)})


def training_source_from_file(path: PathLike, labels_as_text: bool = False) -> RowSource:
  """As source_from_file, but with all rationales of a row that has several."""
  source = source_from_file(path, labels_as_text)
  rows = TrainingRows(path, labels_as_text)
  summary = summarise(rows)
  if summary == source.summary:
    return source
  report = {**source.report, "further_rationales": summary.rows - source.summary.rows}
  return dataclasses.replace(
    source, rows=rows, summary=summary, report=report, given_rows=source.rows
  )


def source_from_task(
  task: TaskDefinition,
  split: str,
  data_dir: PathLike,
  label_source: LabelSource = "gold",
  *,
  needs_answers: bool = True,
  labels_as_text: bool = False,
) -> RowSource:
  """Returns one split of a task, with its metric and the report on the teacher's outputs.

  Arguments and errors are those of load_rows.
  """
  rows, parse_report = load_rows(
    task,
    split,
    data_dir,
    label_source,
    needs_answers=needs_answers,
    labels_as_text=labels_as_text,
  )
  report = {
    "task": task.name,
    "split": split,
    "label_source": label_source if split == "train" else "gold",
    "teacher": parse_report.to_json(),
  }
  metric = functools.partial(task_figures, task.metric)
  return source_from_rows(f"{task.name}_{split}", rows, metric, report)
