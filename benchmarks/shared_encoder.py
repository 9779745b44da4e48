"""The time of a step with a shared encoder, against one that encodes a row twice.

python benchmarks/shared_encoder.py --data-dir data --vocabulary t5.model [--student small]

--data-dir has the published folders cqa/ and esnli/. Prints one line of JSON a data set. Both
steps train on the same 24 examples, by turns, after a turn in which their programs are compiled.
`ratio` is the median, over the steps, of the shared step's time divided by the other's, and
`cpu_ratio` the same of the processor's time, which other programs on the machine disturb less.
`flops_ratio` is that of the matrix products that the rows' shapes need, padding included, over the
first 100 steps.
"""

import argparse
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import LABEL, RATIONALE, RunConfig
from dss_jax.data.batches import BatchLayout, TrainBatches
from dss_jax.data.packing import aligned_tokens
from dss_jax.data.pipeline import prepare
from dss_jax.data.shared_encoder import shared_starts
from dss_jax.model.flops import forward_flops
from dss_jax.parallel.mesh import make_mesh
from dss_jax.student.model_dir import with_vocab_size
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.step import Trainer


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data-dir", required=True, type=pathlib.Path)
  parser.add_argument("--vocabulary", required=True)
  parser.add_argument("--student", default="small")
  parser.add_argument("--tasks", nargs="+", default=["cqa", "esnli"])
  parser.add_argument("--steps", type=int, default=5)
  arguments = parser.parse_args()
  for task in arguments.tasks:
    print(json.dumps({"task": task, **compared(task, arguments)}), flush=True)


def compared(task: str, arguments: argparse.Namespace) -> dict[str, Any]:
  """Returns the times of both steps on a task's rows."""
  runs = {name: Run(task, arguments, name == "shared") for name in ("separate", "shared")}
  for step in range(arguments.steps):
    for run in runs.values():
      run.take(step)
  times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
  for step in range(arguments.steps):
    for name, run in runs.items():
      times[name].append(run.take(step))
  pairs = list(zip(times["shared"], times["separate"], strict=True))
  ratios = [shared[0] / separate[0] for shared, separate in pairs]
  flops = {name: sum(map(run.flops, range(100))) for name, run in runs.items()}
  return {
    "student": arguments.student,
    "steps": arguments.steps,
    "device": jax.devices()[0].device_kind,
    **{
      f"{name}_seconds": round(statistics.median(seconds for seconds, _ in each), 3)
      for name, each in times.items()
    },
    "ratio": round(statistics.median(ratios), 3),
    "cpu_ratio": round(statistics.median(a[1] / b[1] for a, b in pairs), 3),
    "least_and_largest_ratio": [round(min(ratios), 3), round(max(ratios), 3)],
    "flops_ratio": round(flops["shared"] / flops["separate"], 3),
    "padding": {name: run.batches.packed.padding_shares() for name, run in runs.items()},
  }


class Run:
  """The steps of one of the two runs."""

  def __init__(self, task: str, arguments: argparse.Namespace, is_shared: bool):
    values = {
      "MODEL_DIR": "unused",
      "MIXTURE_OR_TASK_NAME": task,
      "DATA_DIR": str(arguments.data_dir / task),
      "VOCABULARY": arguments.vocabulary,
      "TASK_FEATURE_LENGTHS": {"inputs": 1024, "targets": 256},
      "MeshConfig.data": 1,
      "DataConfig.shared_encoder": is_shared,
    }
    files = ["runs/distill.gin", f"models/{arguments.student}.gin"]
    config = load_config(RunConfig, files, [Binding(*item, "") for item in values.items()])
    data = prepare(config.data, (LABEL, RATIONALE))
    config = with_vocab_size(config, data.vocabulary)
    self._costs: Callable[..., float] = forward_flops(config.model).of_rows
    self.batches = TrainBatches(
      data.train,
      batch_size=config.batch_size,
      seed=config.seed,
      kinds=(LABEL, RATIONALE),
      costs=self._costs,
      length_multiple=aligned_tokens(config.model.dtype),
      layout=BatchLayout(shared_starts(config.data, data.vocabulary)),
    )
    mesh = make_mesh(config.mesh, config.batch_size)
    self._trainer = Trainer(config, make_optimizer(config.optimizer, config.train_steps), mesh)
    self._state = self._trainer.init_state()

  def take(self, step: int) -> tuple[float, float]:
    """Takes a step on the examples of that number; returns its seconds, and the processor's."""
    packing, sequences = self.batches.pack(step)
    fill = functools.partial(self.batches.packed.fill, packing, sequences)
    batch = self._trainer.to_mesh(packing.shape.rows, fill)
    started, cpu_started = time.perf_counter(), time.process_time()
    self._state, metrics = self._trainer.train_step(self._state, batch)
    jax.block_until_ready((self._state, metrics))
    return time.perf_counter() - started, time.process_time() - cpu_started

  def flops(self, step: int) -> float:
    return self._costs(*self.batches.pack(step)[0].shape)


if __name__ == "__main__":
  main()
