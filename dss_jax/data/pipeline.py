"""From a DataConfig to token stores and the report on what went into them."""

import dataclasses
from typing import Any

from dss_jax.config.schema import LABEL, RATIONALE, DataConfig
from dss_jax.data.report.build import report_on_rows
from dss_jax.data.sources import (
  RowSource,
  source_from_file,
  source_from_task,
  training_source_from_file,
)
from dss_jax.data.task_definition import TaskDefinition, load_task
from dss_jax.data.token_store import TokenStore, open_token_store
from dss_jax.data.vocabularies import T5_VOCABULARY, Vocabulary, load_vocabulary
from dss_jax.errors import UserError
from dss_jax.progress import progress_line


@dataclasses.dataclass(frozen=True)
class PreparedData:
  """Tokens to train and evaluate on, with their vocabulary and the report on their rows."""

  vocabulary: Vocabulary
  train: TokenStore
  evaluation: TokenStore | None
  report: dict[str, Any]
  warnings: list[str]


def sources(config: DataConfig, annotated: str | None = None) -> tuple[RowSource, RowSource | None]:
  """The rows to train on, and those to evaluate on if there are any.

  A task is evaluated on its validation split, never on its test split, unless another file
  is given. Raises UserError where the configuration names no data, or names it twice.

  Args:
    annotated: the file of the same training rows as a teacher has completed them.
  """
  check_data(config)
  if config.task is not None:
    train, evaluation = _task_sources(config, load_task(config.task), annotated)
  else:
    assert config.dataset is not None
    train, evaluation = training_source_from_file(annotated or config.dataset), None
  if config.eval_dataset is not None:
    evaluation = source_from_file(config.eval_dataset)
  return train, evaluation


def check_data(config: DataConfig) -> None:
  """Raises UserError where the configuration names no data, or names it twice."""
  if (config.dataset is None) == (config.task is None):
    both = "both" if config.dataset else "neither"
    raise UserError(
      f"{both} of --dataset and --task given; give --dataset TRAIN.jsonl, or --task NAME with "
      "--data-dir DIR"
    )
  if config.task is not None:
    if config.data_dir is None:
      raise UserError(f"--task {config.task} needs --data-dir, the folder of its files")
    return
  if config.data_dir is not None:
    raise UserError("--data-dir belongs to --task; leave it out with --dataset")
  if config.labels != "gold":
    raise UserError("--labels teacher belongs to --task; the rows of --dataset hold their labels")


def _task_sources(
  config: DataConfig, task: TaskDefinition, annotated: str | None
) -> tuple[RowSource, RowSource | None]:
  assert config.data_dir is not None
  if annotated is None:
    train = source_from_task(task, "train", config.data_dir, config.labels)
  else:
    train = dataclasses.replace(
      training_source_from_file(annotated), name=f"{task.name}_train", metric=task.metric
    )
  if "validation" not in task.splits or config.eval_dataset is not None:
    return train, None
  # Whoever asks a teacher of their own need not have the recorded answers of another.
  needs_answers = annotated is None
  return train, source_from_task(task, "validation", config.data_dir, needs_answers=needs_answers)


def prepare(
  config: DataConfig, tasks: tuple[int, ...], annotated: str | None = None
) -> PreparedData:
  """Reads, checks, reports on and tokenises the rows of a run.

  Args:
    tasks: LABEL and/or RATIONALE, what the run trains.
    annotated: as for sources.

  Raises:
    UserError: rows, vocabulary or task are not as they must be, or no row serves a task.
  """
  train, evaluation = sources(config, annotated)
  _check_rows_for(tasks, train, evaluation)
  vocabulary = load_vocabulary(T5_VOCABULARY if config.vocabulary is None else config.vocabulary)
  report = report_on_rows(
    enumerate(train.rows if train.given_rows is None else train.given_rows, start=1),
    name=train.name,
    eval_rows=None if evaluation is None else enumerate(evaluation.rows, start=1),
    eval_name="evaluation" if evaluation is None else evaluation.name,
    vocabulary=vocabulary,
    max_input_tokens=config.max_input_tokens,
    max_output_tokens=config.max_output_tokens,
  )
  return PreparedData(
    vocabulary=vocabulary,
    train=tokens(train, vocabulary, config),
    evaluation=None if evaluation is None else tokens(evaluation, vocabulary, config),
    report={
      **report.to_json(),
      "train_source": train.report,
      "evaluation_source": None if evaluation is None else evaluation.report,
    },
    warnings=list(report.warnings),
  )


def _check_rows_for(tasks: tuple[int, ...], train: RowSource, evaluation: RowSource | None) -> None:
  """Raises UserError where a trained task has no row, or the judged one none to judge by."""
  for task, count, what, mend in (
    (LABEL, train.summary.labelled, "output_text", "label some rows"),
    (RATIONALE, train.summary.with_rationale, "rationale", "run `dss tune`, which needs none"),
  ):
    if task in tasks and not count:
      raise UserError(f'{_place(train)}: no row has "{what}" to train on; {mend}')
  if evaluation is None:
    return
  if LABEL in tasks:
    count, what = evaluation.summary.labelled, "output_text"
  else:
    count, what = evaluation.summary.with_rationale, "rationale"
  if not count:
    raise UserError(
      f'{_place(evaluation)}: no row has "{what}" to evaluate by; add it to some rows, or train '
      "without evaluation data"
    )


def _place(source: RowSource) -> str:
  return source.report.get("file", source.name)


def tokens(source: RowSource, vocabulary: Vocabulary, config: DataConfig) -> TokenStore:
  """The token store of a source, built with a progress line where it is not on disk yet."""
  sequences = source.summary.labelled + source.summary.with_rationale
  with progress_line(f"tokenising {source.name}", sequences) as line:
    return open_token_store(
      source,
      vocabulary,
      max_input_tokens=config.max_input_tokens,
      max_output_tokens=config.max_output_tokens,
      progress=line.update,
    )
