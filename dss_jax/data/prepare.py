"""From a DataConfig to token stores and the report on what went into them."""

import dataclasses
from typing import Any

from dss_jax.config import DataConfig
from dss_jax.data.report import report_on_rows
from dss_jax.data.row_source import (
  RowSource,
  source_from_file,
  source_from_task,
  training_source_from_file,
)
from dss_jax.data.task_files import TaskDefinition, load_task
from dss_jax.data.token_store import LABEL, RATIONALE, TokenStore, open_token_store
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


def sources(config: DataConfig) -> tuple[RowSource, RowSource | None]:
  """The rows to train on, and those to evaluate on if there are any.

  A task is evaluated on its validation split, never on its test split, unless another file
  is given. Raises UserError where the configuration names no data, or names it twice.
  """
  if (config.dataset is None) == (config.task is None):
    both = "both" if config.dataset else "neither"
    raise UserError(
      f"{both} of --dataset and --task given; give --dataset TRAIN.jsonl, or --task NAME with "
      "--data-dir DIR"
    )
  if config.task is not None:
    train, evaluation = _task_sources(config, load_task(config.task))
  else:
    if config.data_dir is not None:
      raise UserError("--data-dir belongs to --task; leave it out with --dataset")
    if config.labels != "gold":
      raise UserError("--labels teacher belongs to --task; the rows of --dataset hold their labels")
    assert config.dataset is not None
    train, evaluation = training_source_from_file(config.dataset), None
  if config.eval_dataset is not None:
    evaluation = source_from_file(config.eval_dataset)
  return train, evaluation


def _task_sources(config: DataConfig, task: TaskDefinition) -> tuple[RowSource, RowSource | None]:
  if config.data_dir is None:
    raise UserError(f"--task {config.task} needs --data-dir, the folder of its files")
  train = source_from_task(task, "train", config.data_dir, config.labels)
  has_validation = "validation" in task.splits and config.eval_dataset is None
  return train, source_from_task(task, "validation", config.data_dir) if has_validation else None


def prepare(config: DataConfig, tasks: tuple[int, ...]) -> PreparedData:
  """Reads, checks, reports on and tokenises the rows of a run.

  Args:
    tasks: LABEL and/or RATIONALE, what the run trains.

  Raises:
    UserError: rows, vocabulary or task are not as they must be, or no row serves a task.
  """
  train, evaluation = sources(config)
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
    (RATIONALE, train.summary.explained, "rationale", "run `dss tune`, which needs none"),
  ):
    if task in tasks and not count:
      raise UserError(f'{_place(train)}: no row has "{what}" to train on; {mend}')
  if evaluation is None:
    return
  if LABEL in tasks:
    count, what = evaluation.summary.labelled, "output_text"
  else:
    count, what = evaluation.summary.explained, "rationale"
  if not count:
    raise UserError(
      f'{_place(evaluation)}: no row has "{what}" to evaluate by; add it to some rows, or train '
      "without evaluation data"
    )


def _place(source: RowSource) -> str:
  return source.report.get("file", source.name)


def tokens(source: RowSource, vocabulary: Vocabulary, config: DataConfig) -> TokenStore:
  """The token store of a source, built with a progress line where it is not on disk yet."""
  sequences = source.summary.labelled + source.summary.explained
  with progress_line(f"tokenising {source.name}", sequences) as line:
    return open_token_store(
      source,
      vocabulary,
      max_input_tokens=config.max_input_tokens,
      max_output_tokens=config.max_output_tokens,
      progress=line.update,
    )
