"""Every kind of distillation on the quickstart's data, over several seeds, with paired intervals.

python benchmarks/kinds.py --output runs/kinds [--sweep gin_configs/sweeps/kinds.gin]
    [--train-steps 300] [--teacher-steps 600]

Makes the quickstart's 200 training rows and 400 held-out rows, trains a teacher of twice the
student's depth on 2,000 rows of the same kind, and runs `dss sweep` with both. Prints the teacher's
exact match, and a table: of each kind the mean exact match on the held-out rows at equal steps, and
its difference from labels alone and from step by step with a 95 % interval, paired by seed
(Student's t). Labels wholly right, teacher-forced, are those that greedy decoding writes. Goes on
where it was stopped.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import scipy.stats

from dss_jax.data.records import write_rows
from dss_jax.pipelines import quickstart, quickstart_data

BASES = ("labels", "step-by-step")
ACCURACY = "label/eval_sequence_accuracy"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", required=True, type=pathlib.Path)
  parser.add_argument("--sweep", nargs="+", default=["gin_configs/sweeps/kinds.gin"])
  parser.add_argument("--train-steps", type=int, default=300)
  parser.add_argument("--teacher-steps", type=int, default=600)
  arguments = parser.parse_args()
  data = arguments.output / "data"
  training, test = quickstart.write_data(data, 0)
  seen = {row["input_text"] for row in test}
  more = [row for row in quickstart_data.make_rows(1, 2400) if row["input_text"] not in seen]
  write_rows(data / "teacher.jsonl", [*training, *more][:2000])
  common = [
    *("--gin-file", "gin_configs/runs/quickstart.gin"),
    *("--vocabulary", str(data / "vocabulary.model")),
    *("--eval-dataset", str(data / "test.jsonl")),
  ]
  teacher = arguments.output / "teacher"
  dss(
    "distill",
    *common,
    *("--dataset", str(data / "teacher.jsonl"), "--model-dir", str(teacher)),
    *("--train-steps", str(arguments.teacher_steps)),
    *("--gin", "T5Config.num_encoder_layers=4", "--gin", "T5Config.num_decoder_layers=4"),
  )
  card = json.loads((teacher / "model.json").read_text(encoding="utf-8"))
  print(f"the teacher's exact match: {100 * card['metrics'][ACCURACY]:.1f} %")
  results = []
  for number, sweep in enumerate(arguments.sweep):
    folder = arguments.output / f"sweep_{number}"
    dss(
      "sweep",
      sweep,
      *common,
      *("--dataset", str(data / "train.jsonl"), "--model-dir", str(folder)),
      *("--teacher-model", str(teacher), "--train-steps", str(arguments.train_steps)),
    )
    results += json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
  by_kind: dict[str, list[float]] = {}
  for result in results:
    accuracy = 100 * result["metrics"].get(ACCURACY, 0.0)
    by_kind.setdefault(result["values"]["KIND"], []).append(accuracy)
  print("\n".join(table(by_kind)))


def dss(*arguments: str) -> None:
  """Runs a command; its output goes to this program's standard error."""
  command = [sys.executable, "-m", "dss_jax.cli.main", *arguments]
  subprocess.run(command, check=True, stdout=sys.stderr)


def table(by_kind: dict[str, list[float]]) -> list[str]:
  """Returns the lines of a table in Markdown."""
  lines = [
    "| kind | exact match, % | against labels | against step by step |",
    "| --- | --- | --- | --- |",
  ]
  for kind, values in by_kind.items():
    cells = [f"`{kind}`", f"{np.mean(values):.1f}"]
    cells += [
      "" if kind == base or base not in by_kind else difference(values, by_kind[base])
      for base in BASES
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return lines


def difference(values: Sequence[float], others: Sequence[float]) -> str:
  """Returns the mean of the paired differences with its 95 % interval."""
  paired = np.subtract(values, others)
  error = scipy.stats.sem(paired) * scipy.stats.t.ppf(0.975, len(paired) - 1)
  return f"{np.mean(paired):+.1f} ± {error:.1f}"


if __name__ == "__main__":
  main()
