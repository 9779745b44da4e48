"""Annotates the rows of a training run before training, as a resumable stage."""

import hashlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from dss_jax.annotation.annotate_file import annotate_rows
from dss_jax.annotation.review import approved_review
from dss_jax.annotation.teacher_settings import annotation_settings
from dss_jax.config.schema import MUTABLE_ON_RESUME, RunConfig, flatten
from dss_jax.data.pipeline import check_data
from dss_jax.data.records import Row
from dss_jax.data.sources import FileRows, summarise
from dss_jax.data.task_files import TaskDefinition, load_task
from dss_jax.data.task_rows import rows_to_annotate
from dss_jax.data.vocabularies import T5_VOCABULARY, load_vocabulary
from dss_jax.errors import UserError
from dss_jax.progress import say
from dss_jax.storage.atomic import write_text
from dss_jax.student import model_dir as students

ANNOTATED = "annotated.jsonl"
STAMP = "annotated.json"


class _UnannotatedRows(NamedTuple):
  """The rows that the teacher annotates.

  Attributes:
    place: their file, for messages.
    rows: can be iterated several times.
    task: provides prompt and parser; None for a data set without a task.
    row_numbers: the rows' numbers in the task's published file, for recorded answers.
  """

  place: str
  rows: Iterable[Row]
  task: TaskDefinition | None = None
  row_numbers: list[int] | None = None


def annotate_training_rows(config: RunConfig) -> tuple[str | None, dict[str, Any] | None]:
  """Returns the annotated training file and the figures; (None, None) without a teacher.

  Annotates the rows of the data set, or of the task's train split, into
  MODEL_DIR/annotated.jsonl, once: a resumed run trains on the same file. If people reviewed these
  rows and approved them, the reviewed file is returned.

  Raises:
    UserError: invalid settings; rows that changed since the run began; as annotate_rows.
  """
  teacher = config.teacher
  if teacher.name is None:
    return None, None
  source = _rows_to_annotate(config)
  # Checked first, so that a later error does not waste an annotation.
  load_vocabulary(T5_VOCABULARY if config.data.vocabulary is None else config.data.vocabulary)
  if config.data.eval_dataset is not None:
    summarise(FileRows(config.data.eval_dataset, config.data.labels_as_text))
  folder = pathlib.Path(config.model_dir)
  stamp = {
    "rows": summarise(source.rows).digest,
    "settings": _answer_settings(config),
    "teacher": _file_or_name(teacher.name),
    "prompt": _file_or_name(teacher.prompt),
  }
  previous = _read_stamp(folder)
  output = folder / ANNOTATED
  if previous is not None and _is_same(previous, stamp):
    return _reviewed(output, previous["figures"])
  if students.has_begun_training(config):
    _check_had_teacher(config)
  if previous is not None and students.has_begun_training(config):
    is_other = previous.get("rows") != stamp["rows"]
    what = f"rows of {source.place}" if is_other else "teacher and its settings"
    raise UserError(
      f"--model-dir {folder}: the {what} are not those that this run began with; give a new"
      " folder, or the old ones to resume"
    )
  with students.locked(config):
    figures = _annotate(config, source, output)
    write_text(folder / STAMP, json.dumps({**stamp, "figures": figures}, indent=2) + "\n")
  agreement = ""
  if figures["compared_with_gold"]:
    agreement = f" {figures['agreeing_percent']:.1f} % agree with the row's own label,"
  say(
    f"teacher: {figures['parsed']:,} answers parse ({figures['parsed_percent']:.2f} %),{agreement}"
    f" {figures['with_rationale']:,} of {figures['rows']:,} rows have a rationale;"
    f" read them with dss annotate report {output} --html PAGE.html"
  )
  return _reviewed(output, figures)


def _reviewed(output: pathlib.Path, figures: dict[str, Any]) -> tuple[str, dict[str, Any]]:
  """Returns the annotated file, or what an approved review made of it, and the figures."""
  review = approved_review(output)
  if review is None:
    return str(output), figures
  return str(review.path), {**figures, "review": review.figures}


def _rows_to_annotate(config: RunConfig) -> _UnannotatedRows:
  """Returns the rows of the configured data set or task; raises UserError if it is invalid."""
  data = config.data
  check_data(data)
  if data.dataset is not None:
    return _UnannotatedRows(data.dataset, FileRows(data.dataset, data.labels_as_text))
  assert data.task is not None
  assert data.data_dir is not None
  task = load_task(data.task)
  numbered = rows_to_annotate(task, data.data_dir, data.label_source, data.labels_as_text)
  row_numbers, rows = [number for number, _ in numbered], [row for _, row in numbered]
  return _UnannotatedRows(f"{data.data_dir} for task {task.name}", rows, task, row_numbers)


def _annotate(config: RunConfig, source: _UnannotatedRows, output: pathlib.Path) -> dict[str, Any]:
  teacher = config.teacher
  return annotate_rows(
    lambda: source.rows,
    output,
    *annotation_settings(teacher),
    task=source.task,
    prompt=teacher.prompt,
    row_numbers=source.row_numbers,
  )


def _check_had_teacher(config: RunConfig) -> None:
  if students.stored_config(config).teacher.name is None:
    raise UserError(
      f"--model-dir {config.model_dir}: this run began without a teacher; give a new folder, or"
      " leave out --teacher to resume"
    )


def _answer_settings(config: RunConfig) -> dict[str, Any]:
  """Returns the teacher's settings, as JSON, whose change makes an annotation invalid."""
  fields = flatten(config.teacher)
  kept = {name: value for name, value in fields.items() if name not in MUTABLE_ON_RESUME}
  return json.loads(json.dumps(kept))


def _file_or_name(value: str | None) -> dict[str, str | None]:
  """Returns the name of a teacher or prompt, and the digest of its file if it has one now."""
  path = pathlib.Path((value or "").removeprefix("recorded:").removeprefix("t5:"))
  if path.is_dir():
    path /= students.CARD
  digest = None
  if path.is_file():
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
  return {"name": value, "digest": digest}


def _is_same(previous: dict[str, Any], stamp: dict[str, Any]) -> bool:
  """Returns whether an annotation is the one wanted; files count by content, if they are there."""
  if any(previous.get(key) != stamp[key] for key in ("rows", "settings")):
    return False
  return all(
    previous[key]["digest"] == stamp[key]["digest"]
    if stamp[key]["digest"]
    else previous[key]["name"] == stamp[key]["name"]
    for key in ("teacher", "prompt")
  )


def _read_stamp(folder: pathlib.Path) -> dict[str, Any] | None:
  """Reads the stamp of the annotation in MODEL_DIR; None unless stamp and rows are complete."""
  try:
    stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  is_complete = isinstance(stamp, dict) and all(
    isinstance(stamp.get(key), dict) for key in ("figures", "teacher", "prompt")
  )
  return stamp if is_complete and (folder / ANNOTATED).is_file() else None
