"""Which checkpoint each rule of selection hands on, and how good it is on rows it has not seen.

python benchmarks/checkpoint_selection.py --data-dir data --vocabulary t5.model [--seeds 3]

--data-dir has the published folders cqa/, svamp/, esnli/ and flan_cot/. Trains a student from
scratch on a few hundred rows of each data set and evaluates it every few steps on 100 others. All
rules see the same run. Prints one line of JSON a run: the step that each rule takes, with the exact
match and the label loss of that step's weights on the test rows, beside the last step's and the
best one's; and every evaluation. Labels wholly right, teacher-forced, are those that greedy
decoding writes, so nothing is decoded.
"""

import argparse
import functools
import json
import pathlib
import random
import tempfile
from collections.abc import Iterator
from typing import Any

import jax

from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import EvaluationConfig, RunConfig, student_file
from dss_jax.data.batches import EvalBatches, TrainBatches
from dss_jax.data.packing import aligned_tokens
from dss_jax.data.pipeline import prepare, tokenise_source
from dss_jax.data.sources import source_from_rows
from dss_jax.data.task_files import load_task
from dss_jax.data.task_rows import load_rows
from dss_jax.losses.kinds import make_objective
from dss_jax.model.flops import forward_flops
from dss_jax.parallel.mesh import make_mesh
from dss_jax.student.model_dir import with_vocab_size
from dss_jax.train.evaluation import Evaluation, evaluate
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.selection import Scores, Standing, compare
from dss_jax.train.step import Trainer

RULES = ("token-accuracy", "noise-aware")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data-dir", required=True, type=pathlib.Path)
  parser.add_argument("--vocabulary", required=True)
  parser.add_argument("--data-sets", nargs="+", default=["creak", "svamp", "cqa", "esnli"])
  parser.add_argument("--student", default="mini")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=100)
  parser.add_argument("--interval", type=int, default=10)
  parser.add_argument("--rows", type=int, default=600)
  parser.add_argument("--eval-rows", type=int, default=100)
  parser.add_argument("--test-rows", type=int, default=500)
  arguments = parser.parse_args()
  for name in arguments.data_sets:
    for seed in range(arguments.seeds):
      print(json.dumps({"data": name, "seed": seed, **figures(name, seed, arguments)}), flush=True)


def figures(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
  """Returns the step of each rule and its exact match on the test rows, of one run."""
  train, validation, test = rows_of(name, arguments)
  with tempfile.TemporaryDirectory() as folder:
    paths = [pathlib.Path(folder) / f"{part}.jsonl" for part in ("train", "eval")]
    for path, rows in zip(paths, (train, validation), strict=True):
      path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    evaluations = list(run(config_of(paths, seed, arguments), test, arguments.interval))
  exact = [
    round(float(of_test.sequences["label"].right.mean()), 4) for _, _, of_test in evaluations
  ]
  losses = [round(scores_of(of_test).loss, 4) for _, _, of_test in evaluations]
  taken = {"last": len(evaluations) - 1, "best": max(range(len(exact)), key=exact.__getitem__)}
  for rule in RULES:
    standing = Standing()
    for number, (_, of_validation, _) in enumerate(evaluations):
      verdict = compare(standing, scores_of(of_validation), EvaluationConfig(selection=rule))
      standing = verdict.standing
      taken[rule] = number if verdict.is_best else taken.get(rule, 0)
  course = []
  for number, (step, of_validation, _) in enumerate(evaluations):
    scores = scores_of(of_validation)
    course.append(
      {
        "step": step,
        "token_accuracy": round(scores.accuracy, 4),
        "labels_right": scores.right.count("1"),
        "label_loss": round(scores.loss, 4),
        "test_exact_match": exact[number],
        "test_label_loss": losses[number],
      }
    )
  return {**{rule: course[number] for rule, number in taken.items()}, "course": course}


def rows_of(name: str, arguments: argparse.Namespace) -> list[list[dict[str, Any]]]:
  """Returns training, validation and test rows: a fixed sample of each."""
  counts = (arguments.rows, arguments.eval_rows, arguments.test_rows)
  if name == "creak":
    path = arguments.data_dir / "flan_cot" / "creak_train.tsv"
    published = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    keys = ("input_text", "output_text", "rationale")
    rows = [
      dict(zip(keys, (text.replace("\\n", "\n") for text in row), strict=True)) for row in published
    ]
    parts = [rows[: counts[0]], rows[counts[0] : sum(counts[:2])], rows[sum(counts[:2]) :]]
  else:
    load = functools.partial(load_rows, load_task(name), data_dir=arguments.data_dir / name)
    parts = [list(load(split=split).rows) for split in ("train", "validation", "test")]
  return [
    random.Random(0).sample(rows, min(count, len(rows)))
    for rows, count in zip(parts, counts, strict=True)
  ]


def config_of(paths: list[pathlib.Path], seed: int, arguments: argparse.Namespace) -> RunConfig:
  """Returns the configuration of a run, the defaults' but for its size."""
  values = {
    "MODEL_DIR": "unused",
    "DATASET": str(paths[0]),
    "EVAL_DATASET": str(paths[1]),
    "VOCABULARY": arguments.vocabulary,
    "TRAIN_STEPS": arguments.steps,
    "TASK_FEATURE_LENGTHS": {"inputs": 256, "targets": 128},
    "SEED": seed,
  }
  bindings = [Binding(key, value, "the script") for key, value in values.items()]
  return load_config(RunConfig, ["runs/distill.gin", student_file(arguments.student, "")], bindings)


def run(
  config: RunConfig, test_rows: list[dict[str, Any]], interval: int
) -> Iterator[tuple[int, Evaluation, Evaluation]]:
  """Trains, and yields step, validation and test evaluation at each interval."""
  objective = make_objective(config.loss)
  data = prepare(config.data, objective.kinds)
  assert data.evaluation is not None
  config = with_vocab_size(config, data.vocabulary)
  mesh = make_mesh(config.mesh, config.batch_size)
  trainer = Trainer(config, make_optimizer(config.optimizer, config.train_steps), mesh)
  options: dict[str, Any] = {
    "batch_size": config.batch_size,
    "costs": forward_flops(config.model).of_rows,
    "row_multiple": mesh.shape["data"],
    "length_multiple": aligned_tokens(config.model.dtype),
  }
  train = TrainBatches(data.train, seed=config.seed, kinds=objective.kinds, **options)
  test = tokenise_source(source_from_rows("test", test_rows), data.vocabulary, config.data)
  validation = EvalBatches(data.evaluation, kinds=objective.kinds, **options)
  # Labels alone: the rationales of test rows decide nothing here.
  tested = EvalBatches(test, kinds=objective.kinds[:1], **options)
  state = trainer.init_state()
  for step in range(1, config.train_steps + 1):
    packing, sequences = train.pack(step - 1)
    fill = functools.partial(train.packed.fill, packing, sequences)
    state, metrics = trainer.train_step(state, trainer.to_mesh(packing.shape.rows, fill))
    if step % interval == 0 or step == config.train_steps:
      jax.block_until_ready(metrics)
      yield step, *(evaluate(trainer, state.params, batches) for batches in (validation, tested))


def scores_of(evaluation: Evaluation) -> Scores:
  """Returns what the rules compare, as the training loop has it."""
  sums = evaluation.sums
  right = "".join("1" if each else "0" for each in evaluation.sequences["label"].right)
  return Scores(right, float(sums["label/accuracy"].mean()), float(sums["label/loss"].mean()))


if __name__ == "__main__":
  main()
