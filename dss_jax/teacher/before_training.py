"""The rows of a training run, annotated by its teacher first, as a resumable part of the run."""

import dataclasses
import json
import pathlib
from typing import Any

from dss_jax import student as students
from dss_jax.config import FREE_ON_RESUME, DataConfig, RunConfig, flatten
from dss_jax.data.row_source import FileRows, summarise
from dss_jax.data.vocabularies import T5_VOCABULARY, load_vocabulary
from dss_jax.errors import UserError
from dss_jax.progress import say
from dss_jax.teacher.annotate import Settings
from dss_jax.teacher.command import TeacherOptions, annotate_file
from dss_jax.teacher.filters import CONCERNS
from dss_jax.teacher.outcome import Choices

ANNOTATED = "annotated.jsonl"
STAMP = "annotated.json"


def annotated_data(config: RunConfig) -> tuple[DataConfig, dict[str, Any] | None]:
  """Where to train from, and the figures of the annotation; as configured where nobody is asked.

  With a teacher, the rows of the data set are annotated into MODEL_DIR/annotated.jsonl, once:
  a run that is taken up again trains on what it began with.

  Raises:
    UserError: the settings do not fit together, the rows are no longer those that the run
      began with, or as annotate_file does.
  """
  teacher = config.teacher
  if teacher.name is None:
    return config.data, None
  dataset = config.data.dataset
  if dataset is None:
    raise UserError(
      f"--teacher {teacher.name}: belongs to --dataset; annotate the files of a task with"
      " dss annotate --task, and give the output as --dataset"
    )
  unknown = sorted(set(teacher.filters or ()) - set(CONCERNS))
  if unknown:
    raise UserError(
      f"TeacherConfig.filters: {unknown[0]!r} is no concern; choose from {', '.join(CONCERNS)}"
    )
  # A mistake in what comes after the teacher must not cost an annotation first.
  load_vocabulary(T5_VOCABULARY if config.data.vocabulary is None else config.data.vocabulary)
  if config.data.eval_dataset is not None:
    summarise(FileRows(config.data.eval_dataset))
  folder = pathlib.Path(config.model_dir)
  stamp = {"rows": summarise(FileRows(dataset)).digest, "teacher": _what_shapes_answers(config)}
  found = _read_stamp(folder)
  data = dataclasses.replace(config.data, dataset=str(folder / ANNOTATED))
  if found is not None and {key: found.get(key) for key in stamp} == stamp:
    return data, found["figures"]
  if found is not None and students.has_begun_training(config):
    raise UserError(
      f"--model-dir {folder}: the rows of {dataset} are not those that this run began with; give"
      " a new folder, or the old rows to resume"
    )
  with students.locked(config):
    figures = _annotate(config, dataset, folder / ANNOTATED)
    students.write_text(folder / STAMP, json.dumps({**stamp, "figures": figures}, indent=2) + "\n")
  say(
    f"teacher: {figures['parsed']:,} answers parse ({figures['parsed_percent']:.2f} %),"
    f" {figures['explained']:,} of {figures['rows']:,} rows are explained;"
    f" read them with dss annotate report {folder / ANNOTATED} --html PAGE.html"
  )
  return data, figures


def _annotate(config: RunConfig, dataset: str, output: pathlib.Path) -> dict[str, Any]:
  teacher = config.teacher
  assert teacher.name is not None
  return annotate_file(
    dataset,
    output,
    TeacherOptions(teacher=teacher.name, url=teacher.url, key_env=teacher.key_env),
    Choices(
      labels=teacher.labels,
      show_labels=teacher.show_labels,
      samples=teacher.samples,
      temperature=teacher.temperature,
      kept_rationales=teacher.kept_rationales,
      filters=frozenset(teacher.filters or ()),
    ),
    Settings(
      max_requests_in_flight=teacher.max_requests_in_flight, budget_tokens=teacher.budget_tokens
    ),
    prompt=teacher.prompt,
  )


def _what_shapes_answers(config: RunConfig) -> dict[str, Any]:
  """The settings of the teacher by which a finished annotation is known again, as JSON has them."""
  fields = flatten(config.teacher)
  kept = {name: value for name, value in fields.items() if name not in FREE_ON_RESUME}
  return json.loads(json.dumps(kept))


def _read_stamp(folder: pathlib.Path) -> dict[str, Any] | None:
  """What is known of the annotation in MODEL_DIR; None where there is none, or not a whole one."""
  try:
    stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  is_whole = isinstance(stamp, dict) and isinstance(stamp.get("figures"), dict)
  return stamp if is_whole and (folder / ANNOTATED).is_file() else None
