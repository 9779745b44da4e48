"""The exact match of students with a shared encoder, against students that encode a row twice.

python benchmarks/shared_encoder_quality.py --model-dir runs/quality [--seeds 5] [--steps 300]

Both are trained on the quickstart's data with its settings (gin_configs/runs/quickstart.gin), a
pair for each seed, which is that of the data, too. Prints one line of JSON a student: the exact
match in percent of its labels and its rationales on 400 rows that none of the two has seen.
"""

import argparse
import json
import pathlib

from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import MeshConfig, RunConfig
from dss_jax.data.records import Row, read_rows
from dss_jax.parallel.mesh import make_mesh
from dss_jax.pipelines import distill, quickstart
from dss_jax.student.predictor import Predictor
from dss_jax.student.student import Student


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model-dir", required=True, type=pathlib.Path)
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=300)
  arguments = parser.parse_args()
  for seed in range(arguments.seeds):
    folder = arguments.model_dir / str(seed)
    quickstart.write_data(folder / "data", seed)
    test = list(read_rows(folder / "data" / "test.jsonl"))
    for is_shared in (False, True):
      config = run_config(folder, seed, arguments.steps, is_shared)
      distill.run(config)
      print(json.dumps({"seed": seed, "shared": is_shared, **scores(config, test)}), flush=True)


def run_config(folder: pathlib.Path, seed: int, steps: int, is_shared: bool) -> RunConfig:
  values = {
    "MODEL_DIR": str(folder / ("shared" if is_shared else "separate")),
    "DATASET": str(folder / "data" / "train.jsonl"),
    "EVAL_DATASET": str(folder / "data" / "eval.jsonl"),
    "VOCABULARY": str(folder / "data" / "vocabulary.model"),
    "SEED": seed,
    "TRAIN_STEPS": steps,
    "DataConfig.shared_encoder": is_shared,
  }
  return load_config(
    RunConfig, ["runs/quickstart.gin"], [Binding(*item, "") for item in values.items()]
  )


def scores(config: RunConfig, test: list[Row]) -> dict[str, float]:
  mesh = make_mesh(MeshConfig(data=1), 100)
  predictor = Predictor(Student.open(config.model_dir), mesh, batch_size=100)
  texts = [row["input_text"] for row in test]
  found = {}
  for kind, key in (("label", "output_text"), ("rationale", "rationale")):
    answers = predictor.answers(texts, kind)
    right = sum(answer == row[key] for answer, row in zip(answers, test, strict=True))
    found[f"{kind}_exact_match_percent"] = 100 * right / len(test)
  return found


if __name__ == "__main__":
  main()
