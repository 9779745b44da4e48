"""Token stores of a run and the report on their rows, from a DataConfig."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from dss_jax.config.schema import LABEL, RATIONALE, DataConfig
from dss_jax.data.agreement import weighted
from dss_jax.data.records import Row
from dss_jax.data.report.build import report_on_rows
from dss_jax.data.shared_encoder import prefixes
from dss_jax.data.sources import (
  RowSource,
  source_from_file,
  source_from_task,
  training_source_from_file,
)
from dss_jax.data.task_files import TaskDefinition, load_task
from dss_jax.data.token_store import TokenStore, open_token_store
from dss_jax.data.vocabularies import T5_VOCABULARY, Vocabulary, load_vocabulary
from dss_jax.errors import UserError
from dss_jax.progress import progress_line


@dataclasses.dataclass(frozen=True)
class PreparedData:
  """Token stores to train and evaluate on, their vocabulary, and the report on their rows.

  Attributes:
    train_rows: the rows of the training store, read again for each iteration.
  """

  vocabulary: Vocabulary
  train_rows: Iterable[Row]
  train: TokenStore
  evaluation: TokenStore | None
  report: dict[str, Any]
  warnings: list[str]


def sources(config: DataConfig, annotated: str | None = None) -> tuple[RowSource, RowSource | None]:
  """Returns the rows to train on, and those to evaluate on if there are any.

  A task is evaluated on `config.eval_dataset` if given, else on its validation split, never on
  its test split.

  Args:
    annotated: a file of the same training rows, completed by a teacher; it is read instead.

  Raises:
    UserError: as check_data does.
  """
  check_data(config)
  if config.task is not None:
    train, evaluation = _task_sources(config, load_task(config.task), annotated)
  else:
    assert config.dataset is not None
    train, evaluation = (
      training_source_from_file(annotated or config.dataset, config.labels_as_text),
      None,
    )
  if config.eval_dataset is not None:
    evaluation = source_from_file(config.eval_dataset, config.labels_as_text)
  return train, evaluation


def check_data(config: DataConfig) -> None:
  """Raises UserError unless the configuration gives the training data exactly once."""
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
  if config.label_source != "gold":
    raise UserError(
      "--label-source teacher belongs to --task; the rows of --dataset have their own labels"
    )


def _task_sources(
  config: DataConfig, task: TaskDefinition, annotated: str | None
) -> tuple[RowSource, RowSource | None]:
  assert config.data_dir is not None
  if annotated is None:
    train = source_from_task(
      task, "train", config.data_dir, config.label_source, labels_as_text=config.labels_as_text
    )
  else:
    train = dataclasses.replace(
      training_source_from_file(annotated), name=f"{task.name}_train", metric=task.metric
    )
  if "validation" not in task.splits or config.eval_dataset is not None:
    return train, None
  # With an own teacher, the recorded answers of another one may be missing.
  needs_answers = annotated is None
  evaluation = source_from_task(
    task,
    "validation",
    config.data_dir,
    needs_answers=needs_answers,
    labels_as_text=config.labels_as_text,
  )
  return train, evaluation


def prepare(
  config: DataConfig,
  tasks: tuple[int, ...],
  annotated: str | None = None,
  *,
  agreement_weights: bool = False,
) -> PreparedData:
  """Reads, checks, reports on and tokenises the rows of a run.

  Args:
    tasks: the target kinds to train on: LABEL, RATIONALE or both.
    annotated: as for sources.
    agreement_weights: whether the training examples get the weights of data/agreement.py.

  Raises:
    UserError: the rows, the vocabulary or the task file are invalid, no row has a target of a
      trained kind, or none has an agreement to weight it by.
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
  store = tokenise_source(train, vocabulary, config)
  weights = None
  if agreement_weights:
    store, weights = weighted(store, train)
  return PreparedData(
    vocabulary=vocabulary,
    train_rows=train.rows,
    train=store,
    evaluation=None if evaluation is None else tokenise_source(evaluation, vocabulary, config),
    report={
      **report.to_json(),
      "train_source": train.report,
      "evaluation_source": None if evaluation is None else evaluation.report,
      **({} if weights is None else {"agreement_weights": weights}),
    },
    warnings=list(report.warnings),
  )


def _check_rows_for(tasks: tuple[int, ...], train: RowSource, evaluation: RowSource | None) -> None:
  """Raises UserError if no row has a target to train on, or none has one to evaluate on."""
  for kind, count, key, fix in (
    (LABEL, train.summary.labelled, "output_text", "label some rows"),
    (RATIONALE, train.summary.with_rationale, "rationale", "run `dss tune`, which needs none"),
  ):
    if kind in tasks and not count:
      raise UserError(f'{_place(train)}: no row has "{key}" to train on; {fix}')
  if evaluation is None:
    return
  if LABEL in tasks:
    count, key = evaluation.summary.labelled, "output_text"
  else:
    count, key = evaluation.summary.with_rationale, "rationale"
  if not count:
    raise UserError(
      f'{_place(evaluation)}: no row has "{key}" to evaluate on; add it to some rows, or train '
      "without evaluation data"
    )


def _place(source: RowSource) -> str:
  return source.report.get("file", source.name)


def tokenise_source(source: RowSource, vocabulary: Vocabulary, config: DataConfig) -> TokenStore:
  """Returns the token store of a source; builds it, with a progress line, if it is not on disk."""
  source = dataclasses.replace(source, prefixes=prefixes(config))
  sequences = source.summary.labelled + source.summary.with_rationale
  with progress_line(f"tokenising {source.name}", sequences) as line:
    return open_token_store(
      source,
      vocabulary,
      max_input_tokens=config.max_input_tokens,
      max_output_tokens=config.max_output_tokens,
      progress=line.update,
    )
