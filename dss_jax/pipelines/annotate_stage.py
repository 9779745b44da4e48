"""The rows of a training run, annotated by its teacher first, as a resumable part of the run."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from dss_jax.annotation.annotate_file import annotate_rows
from dss_jax.annotation.teacher_settings import annotation_settings
from dss_jax.config.schema import MUTABLE_ON_RESUME, RunConfig, flatten
from dss_jax.data.pipeline import check_data
from dss_jax.data.records import Row
from dss_jax.data.sources import FileRows, summarise
from dss_jax.data.task_definition import TaskDefinition, load_task
from dss_jax.data.task_rows import rows_to_annotate
from dss_jax.data.vocabularies import T5_VOCABULARY, load_vocabulary
from dss_jax.errors import UserError
from dss_jax.progress import say
from dss_jax.storage.atomic import write_text
from dss_jax.student import model_dir as students

ANNOTATED = "annotated.jsonl"
STAMP = "annotated.json"


class _Asked(NamedTuple):
  """The rows that a teacher is to complete.

  Attributes:
    place: where they come from, for messages.
    rows: iterable any number of times.
    task: whose prompt and parser serve; None for the rows of a data set.
    numbers: of the rows in the task's published file, as recorded answers count them.
  """

  place: str
  rows: Iterable[Row]
  task: TaskDefinition | None = None
  numbers: list[int] | None = None


def annotate_training_rows(config: RunConfig) -> tuple[str | None, dict[str, Any] | None]:
  """The file to train from and the figures of the annotation; twice None where nobody is asked.

  With a teacher, the rows of the data set, or of the task's train split, are annotated into
  MODEL_DIR/annotated.jsonl, once: a run that is taken up again trains on what it began with.

  Raises:
    UserError: the settings do not fit together, the rows are no longer those that the run
      began with, or as annotate_rows does.
  """
  teacher = config.teacher
  if teacher.name is None:
    return None, None
  asked = _asked(config)
  # A mistake in what comes after the teacher must not cost an annotation first.
  load_vocabulary(T5_VOCABULARY if config.data.vocabulary is None else config.data.vocabulary)
  if config.data.eval_dataset is not None:
    summarise(FileRows(config.data.eval_dataset))
  folder = pathlib.Path(config.model_dir)
  stamp = {"rows": summarise(asked.rows).digest, "teacher": _what_shapes_answers(config)}
  found = _read_stamp(folder)
  output = folder / ANNOTATED
  if found is not None and {key: found.get(key) for key in stamp} == stamp:
    return str(output), found["figures"]
  if found is not None and students.has_begun_training(config):
    raise UserError(
      f"--model-dir {folder}: the rows of {asked.place} are not those that this run began with;"
      " give a new folder, or the old rows to resume"
    )
  with students.locked(config):
    figures = _annotate(config, asked, output)
    write_text(folder / STAMP, json.dumps({**stamp, "figures": figures}, indent=2) + "\n")
  agreement = ""
  if figures["compared_with_gold"]:
    agreement = f" {figures['agreeing_percent']:.1f} % agree with the row's own label,"
  say(
    f"teacher: {figures['parsed']:,} answers parse ({figures['parsed_percent']:.2f} %),{agreement}"
    f" {figures['with_rationale']:,} of {figures['rows']:,} rows are explained;"
    f" read them with dss annotate report {output} --html PAGE.html"
  )
  return str(output), figures


def _asked(config: RunConfig) -> _Asked:
  """The rows that the configuration names; raises UserError where it cannot."""
  data = config.data
  check_data(data)
  if data.dataset is not None:
    return _Asked(data.dataset, FileRows(data.dataset))
  assert data.task is not None
  assert data.data_dir is not None
  task = load_task(data.task)
  numbered = rows_to_annotate(task, data.data_dir, data.label_source)
  numbers, rows = [number for number, _ in numbered], [row for _, row in numbered]
  return _Asked(f"{data.data_dir} for task {task.name}", rows, task, numbers)


def _annotate(config: RunConfig, asked: _Asked, output: pathlib.Path) -> dict[str, Any]:
  teacher = config.teacher
  options, choices, settings = annotation_settings(teacher)
  return annotate_rows(
    lambda: asked.rows,
    output,
    options,
    choices,
    settings,
    task=asked.task,
    prompt=teacher.prompt,
    numbers=asked.numbers,
  )


def _what_shapes_answers(config: RunConfig) -> dict[str, Any]:
  """The settings of the teacher by which a finished annotation is known again, as JSON has them."""
  fields = flatten(config.teacher)
  kept = {name: value for name, value in fields.items() if name not in MUTABLE_ON_RESUME}
  return json.loads(json.dumps(kept))


def _read_stamp(folder: pathlib.Path) -> dict[str, Any] | None:
  """What is known of the annotation in MODEL_DIR; None where there is none, or not a whole one."""
  try:
    stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  is_whole = isinstance(stamp, dict) and isinstance(stamp.get("figures"), dict)
  return stamp if is_whole and (folder / ANNOTATED).is_file() else None
