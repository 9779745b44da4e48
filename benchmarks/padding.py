"""The share of padding in packed batches, on the published data sets.

python benchmarks/padding.py --data-dir data --vocabulary t5.model [--student small] [--steps 300]

--data-dir has the published folders cqa/, svamp/ and esnli/. Prints one line of JSON a data set:
the shares of input and target positions that are padding, over the first steps of a run with 24
examples a step; the number of planned row shapes; and the number of batches with another shape.
"""

import argparse
import json
import pathlib

from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import LABEL, RATIONALE, RunConfig
from dss_jax.data.batches import TrainBatches
from dss_jax.data.packing import aligned_tokens
from dss_jax.data.pipeline import prepare
from dss_jax.model.flops import forward_flops
from dss_jax.student.model_dir import with_vocab_size


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data-dir", required=True, type=pathlib.Path)
  parser.add_argument("--vocabulary", required=True)
  parser.add_argument("--student", default="small")
  parser.add_argument("--steps", type=int, default=300)
  arguments = parser.parse_args()
  for task in ("cqa", "svamp", "esnli"):
    print(json.dumps({"task": task, **figures(task, arguments)}))


def figures(task: str, arguments: argparse.Namespace) -> dict[str, object]:
  """Returns the padding of a task's batches."""
  values = {
    "MODEL_DIR": "unused",
    "MIXTURE_OR_TASK_NAME": task,
    "DATA_DIR": str(arguments.data_dir / task),
    "VOCABULARY": arguments.vocabulary,
    "TASK_FEATURE_LENGTHS": {"inputs": 1024, "targets": 256},
  }
  files = ["runs/distill.gin", f"models/{arguments.student}.gin"]
  config = load_config(RunConfig, files, [Binding(*item, "") for item in values.items()])
  data = prepare(config.data, (LABEL, RATIONALE))
  model = with_vocab_size(config, data.vocabulary).model
  batches = TrainBatches(
    data.train,
    batch_size=config.batch_size,
    seed=config.seed,
    kinds=(LABEL, RATIONALE),
    costs=forward_flops(model).of_rows,
    length_multiple=aligned_tokens(model.dtype),
  )
  used = [batches.pack(step)[0].shape for step in range(arguments.steps)]
  shapes = batches.packed.packer.shapes
  return {
    "steps": arguments.steps,
    **{side: round(share, 4) for side, share in batches.packed.padding_shares().items()},
    "planned_shapes": len(shapes),
    "batches_in_other_shapes": sum(shape not in shapes for shape in used),
  }


if __name__ == "__main__":
  main()
