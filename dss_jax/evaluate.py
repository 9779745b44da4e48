"""A student judged on labelled rows: teacher-forced loss and accuracy, and its own answers."""

import dataclasses
from typing import Any

import jax

from dss_jax.config import MeshConfig
from dss_jax.data.batches import EvalBatches
from dss_jax.data.prepare import tokens
from dss_jax.data.row_source import RowSource, source_from_file, source_from_task
from dss_jax.data.task_files import accuracy, load_task
from dss_jax.errors import UserError
from dss_jax.model.flops import forward_flops
from dss_jax.predict import Predictor
from dss_jax.progress import progress_line
from dss_jax.student import Student
from dss_jax.train.evaluation import evaluate
from dss_jax.train.mesh import make_mesh
from dss_jax.train.metrics import named_metrics
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.step import Trainer

LABEL, RATIONALE = 0, 1


def source_for(
  student: Student, dataset: str | None, task: str | None, data_dir: str | None, split: str
) -> RowSource:
  """The rows to judge on: a file with the student's own metric, or a task's split."""
  if (dataset is None) == (task is None):
    raise UserError("give one of --dataset FILE, or --task NAME with --data-dir DIR")
  if task is not None:
    if data_dir is None:
      raise UserError(f"--task {task} needs --data-dir, the folder of its files")
    return source_from_task(load_task(task), split, data_dir)
  assert dataset is not None
  source = source_from_file(dataset)
  trained_on = student.config.data.task
  metric = accuracy if trained_on is None else load_task(trained_on).metric
  return dataclasses.replace(source, metric=metric)


def evaluate_student(
  student: Student, source: RowSource, mesh_config: MeshConfig
) -> dict[str, Any]:
  """Figures on the source's rows, as JSON values.

  `exact_match` is the share of labels written exactly; `task_metrics` holds what the task
  itself measures, in its own units. Rows without a label count towards the rationale's loss alone.
  """
  if not source.summary.labelled:
    raise UserError(f'{source.name}: no row has an "output_text" to judge by; label some rows')
  config = student.config
  mesh = make_mesh(mesh_config, config.batch_size)
  trainer = Trainer(config, make_optimizer(config.optimizer, config.train_steps), mesh)
  store = tokens(source, student.vocabulary, config.data)
  batches = EvalBatches(
    store,
    batch_size=config.batch_size,
    tasks=(LABEL, RATIONALE),
    costs=forward_flops(config.model).of_rows,
    row_multiple=mesh.shape["data"],
  )
  predictor = Predictor(student, mesh, batch_size=config.batch_size)
  sums = jax.device_get(evaluate(trainer, predictor.params, batches))
  labelled = [row for row in source.rows if row.get("output_text")]
  with progress_line("answering", len(labelled)) as line:
    done = 0

    def advance(count: int) -> None:
      nonlocal done
      done += count
      line.update(done)

    predictions = predictor.answers(
      [row["input_text"] for row in labelled], "label", on_batch=advance
    )
  targets = [row["output_text"] for row in labelled]
  exact = sum(map(str.__eq__, targets, predictions))
  return {
    "model": str(student.directory),
    "best_step": student.card["best_step"],
    "rows": source.summary.rows,
    "labelled": len(labelled),
    **named_metrics(sums, "eval", alpha=config.loss.alpha),
    "exact_match": exact / len(labelled),
    "task_metrics": source.metric(targets, predictions),
  }
