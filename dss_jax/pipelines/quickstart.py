"""`dss quickstart`: trains two small students on synthetic rows and compares them."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import MeshConfig, RunConfig
from dss_jax.data.records import Row, write_rows
from dss_jax.parallel.mesh import make_mesh
from dss_jax.pipelines import distill, quickstart_data
from dss_jax.progress import say
from dss_jax.storage.atomic import write_text
from dss_jax.student.predictor import Predictor
from dss_jax.student.student import Student
from dss_jax.terminal import printable

TRAIN_ROWS, EVAL_ROWS, TEST_ROWS = 200, 50, 400
RESULTS = "quickstart.json"
_SHOWN_TEXTS = {
  "input": "input_text",
  "label": "output_text",
  "prediction": "prediction",
  "rationale": "predicted_rationale",
}


@dataclasses.dataclass(frozen=True)
class Variant:
  """One of the two students that are compared."""

  name: str
  folder: str
  alpha: float


VARIANTS = (
  Variant("labels alone", "labels_alone", 1.0),
  Variant("step by step", "step_by_step", 0.5),
)


def run(directory: str, seed: int, settings: Sequence[Binding] = ()) -> dict[str, Any]:
  """Makes the rows, trains both students, and evaluates them on held-out rows.

  When started again, students that are already trained are not trained again.

  Returns:
    The exact match in percent of both students and of two baselines, and three answers.
  """
  folder = pathlib.Path(directory)
  data = folder / "data"
  training, test = write_data(data, seed)
  targets = [row["output_text"] for row in test]
  results: dict[str, Any] = {
    "seed": seed,
    "train_rows": TRAIN_ROWS,
    "test_rows": TEST_ROWS,
    "exact_match_percent": _baselines(training, targets),
  }
  for variant in VARIANTS:
    say(f"\n{variant.name}:")
    config = load_config(
      RunConfig,
      ["runs/quickstart.gin"],
      [
        Binding("MODEL_DIR", str(folder / variant.folder), "--model-dir"),
        Binding("DATASET", str(data / "train.jsonl"), "quickstart"),
        Binding("EVAL_DATASET", str(data / "eval.jsonl"), "quickstart"),
        Binding("VOCABULARY", str(data / "vocabulary.model"), "quickstart"),
        Binding("ALPHA", variant.alpha, "quickstart"),
        Binding("SEED", seed, "--seed"),
        *settings,
      ],
    )
    distill.run(config)
    predictor = _predictor(config)
    answers = predictor.answers([row["input_text"] for row in test], "label")
    correct = sum(map(str.__eq__, targets, answers))
    results["exact_match_percent"][variant.name] = 100 * correct / len(targets)
  # The last predictor is the step-by-step student's.
  shown = test[:3]
  rationales = predictor.answers([row["input_text"] for row in shown], "rationale")
  results["examples"] = [
    {**row, "prediction": answer, "predicted_rationale": rationale}
    for row, answer, rationale in zip(shown, answers, rationales, strict=False)
  ]
  write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")
  return results


def _baselines(training: list[Row], targets: list[str]) -> dict[str, float]:
  """Returns the exact match of the commonest label, overall and for the part in question."""
  labels = [row["output_text"] for row in training]
  commonest = collections.Counter(labels).most_common(1)[0][0]
  verdicts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  for label in labels:
    verdicts[label.split()[0]][label] += 1
  guesses = [verdicts[target.split()[0]].most_common(1)[0][0] for target in targets]
  return {
    "commonest label": 100 * targets.count(commonest) / len(targets),
    "right part, commonest verdict": 100 * sum(map(str.__eq__, guesses, targets)) / len(targets),
  }


def write_data(folder: pathlib.Path, seed: int) -> tuple[list[Row], list[Row]]:
  """Writes training, evaluation and test rows without a common input, and a vocabulary.

  The vocabulary is made from the training rows only. Returns the training and test rows.
  """
  folder.mkdir(parents=True, exist_ok=True)
  rows = quickstart_data.make_rows(seed, TRAIN_ROWS + EVAL_ROWS + TEST_ROWS)
  training, rest = rows[:TRAIN_ROWS], rows[TRAIN_ROWS:]
  evaluation, test = rest[:EVAL_ROWS], rest[EVAL_ROWS:]
  write_rows(folder / "train.jsonl", training)
  write_rows(folder / "eval.jsonl", evaluation)
  write_rows(folder / "test.jsonl", test)
  quickstart_data.write_vocabulary(folder / "vocabulary.model", training)
  return training, test


def _predictor(config: RunConfig) -> Predictor:
  batch_size = 100
  mesh = make_mesh(MeshConfig(data=1), batch_size)
  return Predictor(Student.open(config.model_dir), mesh, batch_size=batch_size)


def show(results: dict[str, Any], directory: str) -> None:
  """Prints the comparison, three answers with their rationales, and the paths of all outputs."""
  console = Console(highlight=False)
  table = Table("trained on", "exact match on held-out rows", title="quickstart")
  for name, percent in results["exact_match_percent"].items():
    table.add_row(name, f"{percent:.1f} %")
  console.print(table)
  for example in results["examples"]:
    console.print()
    for title, key in _SHOWN_TEXTS.items():
      text = Text.assemble((f"{title:<10}", "bold"), " ", printable(example[key]))
      console.print(text)
  folder = pathlib.Path(printable(directory))
  console.print(f"\nTensorBoard: tensorboard --logdir {folder}", markup=False)
  console.print(f"The student: {folder / VARIANTS[1].folder}", markup=False)
  console.print(f"The data:    {folder / 'data'}", markup=False)
  console.print(f"({jax.device_count()} {jax.devices()[0].platform} device(s))", markup=False)
