"""Evaluation of a student on labelled rows: teacher-forced metrics and its own answers."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dss_jax.config.schema import DecodingConfig, MeshConfig, WeightType
from dss_jax.data.batches import BatchLayout, EvalBatches
from dss_jax.data.packing import aligned_tokens
from dss_jax.data.pipeline import tokenise_source
from dss_jax.data.report.counters import excerpts
from dss_jax.data.report.text import round_trip
from dss_jax.data.shared_encoder import shared_starts
from dss_jax.data.sources import RowSource, source_from_file, source_from_task
from dss_jax.data.task_files import Metric, accuracy, load_task
from dss_jax.data.task_metrics import plain_figures, task_figures
from dss_jax.data.vocabularies import Vocabulary
from dss_jax.errors import UserError
from dss_jax.evaluation.figures import comparison, label_quality, rationale_quality
from dss_jax.evaluation.likelihood import answer_probabilities
from dss_jax.evaluation.metrics import row_scores
from dss_jax.losses.kinds import evaluation_objective
from dss_jax.model.flops import forward_flops
from dss_jax.model.layer_stacks import unrolled_config
from dss_jax.parallel.mesh import make_mesh
from dss_jax.progress import progress_line, say
from dss_jax.storage.files import reason
from dss_jax.student.predictor import Predictor
from dss_jax.student.student import Student
from dss_jax.train.evaluation import evaluate
from dss_jax.train.metrics import named_metrics
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.step import Trainer


def source_for(
  student: Student,
  dataset: str | None,
  task: str | None,
  data_dir: str | None,
  split: str | None,
  labels_as_text: bool = False,
) -> RowSource:
  """Returns the rows to evaluate on: a file, with the student's own metric, or a task's split.

  The default split is "test". Raises UserError if neither or both are given, or a flag of one is
  given with the other.
  """
  if (dataset is None) == (task is None):
    both = "both" if dataset else "neither"
    raise UserError(
      f"{both} of --dataset and --task given; give --dataset FILE, or --task NAME with "
      "--data-dir DIR"
    )
  if task is not None:
    if data_dir is None:
      raise UserError(f"--task {task} needs --data-dir, the folder of its files")
    # A student with its own teacher does not need the recorded answers of another one.
    needs_answers = student.config.teacher.name is None
    return source_from_task(
      load_task(task),
      split or "test",
      data_dir,
      needs_answers=needs_answers,
      labels_as_text=labels_as_text,
    )
  for flag, value in (("--data-dir", data_dir), ("--split", split)):
    if value is not None:
      raise UserError(f"{flag} {value} belongs to --task; leave it out with --dataset")
  assert dataset is not None
  return dataclasses.replace(source_from_file(dataset, labels_as_text), metric=_own_metric(student))


def _own_metric(student: Student) -> Metric:
  """Returns the metric of the task that the student was trained on, if the task still exists."""
  task = student.config.data.task
  if task is None:
    return accuracy
  try:
    return load_task(task).metric
  except UserError as error:
    say(f"warning: labels are compared exactly, since the student's task cannot be loaded: {error}")
    return accuracy


@dataclasses.dataclass(frozen=True)
class AnsweredRow:
  """A labelled row with what a student makes of it.

  Attributes:
    number: of the row, from 1, among all rows of the source.
    label: the row's own; the one compared with is what the vocabulary can write of it.
    probability: what the student gives its answer.
    rationale: the student's, None if it was not asked for.
  """

  number: int
  input_text: str
  label: str
  prediction: str
  is_right: bool
  probability: float
  rationale: str | None


@dataclasses.dataclass(frozen=True)
class Judgement:
  """The evaluation of a student on a source's rows.

  Attributes:
    report: every figure, as JSON values.
    rows: the labelled rows, in order.
    scores: the scores of each labelled row, float64 [rows], by name.
  """

  directory: pathlib.Path
  report: dict[str, Any]
  rows: list[AnsweredRow]
  scores: dict[str, np.ndarray]


def evaluate_student(
  student: Student,
  source: RowSource,
  mesh_config: MeshConfig,
  *,
  explain: bool = False,
  weights: WeightType = "float32",
) -> Judgement:
  """Evaluates a student on the source's rows.

  Loss and accuracy cover the target kinds that the student was trained on, as during training;
  a row without a label counts for the rationale only. `exact_match` is the share of answers that
  equal their label; `task_metrics` are the task's own metrics, in its own units (see
  label_figures); `labels` and `rationales` are described in evaluation/figures.py.

  Args:
    explain: whether the student's rationales are written and judged, too.
    weights: how answers are decoded; loss and accuracy are always of float32.
  """
  if not source.summary.labelled:
    raise UserError(f'{source.name}: no row has "output_text" to evaluate on; label some rows')
  config = student.config
  objective = evaluation_objective(config.loss)
  mesh = make_mesh(mesh_config, config.batch_size)
  params = student.params(mesh, scan_layers=False)
  predictor = Predictor(
    student,
    mesh,
    batch_size=config.batch_size,
    decoding=DecodingConfig(weights=weights),
    params=params,
  )
  if explain:
    # Raises for a student without rationales now, not after all its labels.
    predictor.check_trained("rationale")
  config = dataclasses.replace(config, model=unrolled_config(config.model))
  trainer = Trainer(config, make_optimizer(config.optimizer, config.train_steps), mesh)
  store = tokenise_source(source, student.vocabulary, config.data)
  batches = EvalBatches(
    store,
    batch_size=config.batch_size,
    kinds=objective.kinds,
    costs=forward_flops(config.model).of_rows,
    row_multiple=mesh.shape["data"],
    length_multiple=aligned_tokens(config.model.dtype),
    layout=BatchLayout(shared_starts(config.data, student.vocabulary)),
  )
  sums = evaluate(trainer, params, batches).sums
  numbered = [(n, row) for n, row in enumerate(source.rows, start=1) if row.get("output_text")]
  labelled = [row for _, row in numbered]
  texts = [row["input_text"] for row in labelled]
  predictions, rationales = _answers(predictor, texts, explain)
  given = [row["output_text"] for row in labelled]
  if cut := store.truncated["label"]["targets"]:
    say(
      f"warning: {cut:,} of {len(labelled):,} labels are longer than the "
      f"{config.data.max_output_tokens:,} tokens that the student was trained to write: no answer "
      "can match them; train with a higher --max-output-tokens"
    )
  figures = label_figures(given, predictions, student.vocabulary, source.metric)
  labels = student.vocabulary.writable(given)
  scores = row_scores(labels, predictions)
  probabilities = answer_probabilities(student, trainer, params, texts, predictions)
  judged_rationales = None
  if rationales is not None:
    references = [row.get("rationale") for row in labelled]
    judged_rationales = rationale_quality(references, rationales, predictions)
  report = {
    "model": str(student.directory),
    "best_step": student.card["best_step"],
    "rows": source.summary.rows,
    "labelled": len(labelled),
    "truncated": store.truncated,
    **named_metrics(objective, sums, "eval"),
    **figures,
    "labels": label_quality(labels, predictions, scores, probabilities),
    "rationales": judged_rationales,
  }
  rows = [
    AnsweredRow(
      number=number,
      input_text=row["input_text"],
      label=row["output_text"],
      prediction=predictions[i],
      is_right=bool(scores["exact_match"][i]),
      probability=float(probabilities[i]),
      rationale=None if rationales is None else rationales[i],
    )
    for i, (number, row) in enumerate(numbered)
  ]
  return Judgement(student.directory, report, rows, scores)


def compare_students(judgements: Sequence[Judgement]) -> dict[str, Any]:
  """Returns the reports of students on the same rows, and the comparison of each with the first."""
  first = judgements[0]
  return {
    "models": [each.report for each in judgements],
    "comparisons": [
      {
        "model": str(other.directory),
        "compared_with": str(first.directory),
        "scores": comparison(other.scores, first.scores),
      }
      for other in judgements[1:]
    ],
  }


def _answers(
  predictor: Predictor, texts: Sequence[str], explain: bool
) -> tuple[list[str], list[str] | None]:
  """Returns the student's label for each text, and its rationale if asked for."""
  with progress_line("answering", len(texts) * (1 + explain)) as line:
    done = 0

    def advance(count: int) -> None:
      nonlocal done
      done += count
      line.update(done)

    predictions = predictor.answers(texts, "label", on_answers=advance)
    if not explain:
      return predictions, None
    return predictions, predictor.answers(texts, "rationale", on_answers=advance)


def label_figures(
  given: Sequence[str], predictions: Sequence[str], vocabulary: Vocabulary, metric: Metric
) -> dict[str, Any]:
  """Returns the exact match and the metrics of predictions, with a warning if labels change.

  A prediction is compared with what the vocabulary can write of its label, since no student could
  give another text. If this is not the label for some of them
  (`labels_changed_by_vocabulary`), `as_given` has the figures for the labels as they are, too.
  """
  labels = vocabulary.writable(given)
  changed = [(one, other) for one, other in zip(given, labels, strict=True) if one != other]
  as_given = {
    "exact_match": _exact_match(given, predictions),
    "task_metrics": _finite(task_figures(metric, given, predictions)),
  }
  if not changed:
    return {"labels_changed_by_vocabulary": 0, **as_given}
  say(
    f"warning: {len(changed):,} of {len(given):,} labels cannot be written with the student's "
    f"vocabulary as they are: {round_trip(*excerpts(*changed[0]))}; answers are compared with "
    'what it can write, and under "as_given" with the labels themselves'
  )
  figures = {
    "labels_changed_by_vocabulary": len(changed),
    "exact_match": _exact_match(labels, predictions),
    "task_metrics": as_given["task_metrics"],
    "as_given": as_given,
  }
  try:
    figures["task_metrics"] = _finite(plain_figures(metric, labels, predictions))
  # A metric that parses its labels may not be able to read what the vocabulary leaves of them.
  except (Exception, SystemExit) as error:
    say(
      f"warning: the task's metric cannot read the labels as the vocabulary writes them "
      f"({type(error).__name__}: {reason(error)}); task_metrics compare with the labels themselves"
    )
  return figures


def _exact_match(targets: Sequence[str], predictions: Sequence[str]) -> float:
  return sum(map(str.__eq__, targets, predictions)) / len(targets)


def _finite(figures: Any) -> Any:
  """Returns figures with null for NaN and infinity, which JSON lacks."""
  if isinstance(figures, dict):
    return {name: _finite(value) for name, value in figures.items()}
  if isinstance(figures, list):
    return [_finite(value) for value in figures]
  return None if isinstance(figures, float) and not math.isfinite(figures) else figures
