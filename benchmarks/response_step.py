"""The time of a step with response distillation, online and offline, against one without.

python benchmarks/response_step.py --data-dir CQA --vocabulary FILE.model
    [--task cqa] [--student mini] [--teacher small] [--top-k 32] [--steps 5]

All three steps train on the same 24 examples, by turns, after a turn in which their programs are
compiled. Prints one line of JSON: the median seconds of each, the medians of each step's time
divided by that without a teacher (`ratio`), and the same of the processor's time (`cpu_ratio`),
which other programs on the machine disturb less. Offline, the teacher's K likeliest next tokens
come with the batch as from a file of `dss annotate --signal logits`; here they are drawn, since
their values change no time.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import LABEL, RATIONALE, RunConfig
from dss_jax.data.batches import BatchLayout, TargetFeature, TrainBatches
from dss_jax.data.packing import aligned_tokens
from dss_jax.data.pipeline import prepare
from dss_jax.losses.signals import ALIGNED, SparseLogits
from dss_jax.model.flops import forward_flops
from dss_jax.model.t5 import init_params
from dss_jax.parallel.mesh import make_mesh
from dss_jax.student.model_dir import with_vocab_size
from dss_jax.student.teacher_model import as_teacher
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.step import Trainer
from dss_jax.train.teacher_network import TeacherNetwork

NONE, OFFLINE, ONLINE = NAMES = ("none", "offline", "online")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data-dir", required=True)
  parser.add_argument("--vocabulary", required=True)
  parser.add_argument("--task", default="cqa")
  parser.add_argument("--student", default="mini")
  parser.add_argument("--teacher", default="small")
  parser.add_argument("--top-k", type=int, default=32)
  parser.add_argument("--steps", type=int, default=5)
  arguments = parser.parse_args()
  runs = {name: Run(name, arguments) for name in NAMES}
  for step in range(arguments.steps):
    for run in runs.values():
      run.take(step)
  times: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
  for step in range(arguments.steps):
    for name, run in runs.items():
      times[name].append(run.take(step))

  def ratio(name: str, clock: int) -> float:
    pairs = zip(times[name], times[NONE], strict=True)
    return round(statistics.median(own[clock] / base[clock] for own, base in pairs), 3)

  figures = {
    "seconds": {name: round(statistics.median(s for s, _ in times[name]), 3) for name in NAMES},
    "ratio": {name: ratio(name, 0) for name in (OFFLINE, ONLINE)},
    "cpu_ratio": {name: ratio(name, 1) for name in (OFFLINE, ONLINE)},
    "device": jax.devices()[0].device_kind,
  }
  print(json.dumps({**vars(arguments), **figures}))


class Run:
  """The steps of one of the three runs."""

  def __init__(self, name: str, arguments: argparse.Namespace):
    config = _config(arguments, arguments.student, name)
    data = prepare(config.data, (LABEL, RATIONALE))
    config = with_vocab_size(config, data.vocabulary)
    mesh = make_mesh(config.mesh, config.batch_size)
    teacher = file = None
    if name == ONLINE:
      whole = with_vocab_size(_config(arguments, arguments.teacher, NONE), data.vocabulary).model
      teacher = TeacherNetwork(as_teacher(whole, config.model), mesh)
      teacher.load(jax.jit(lambda: nn.meta.unbox(init_params(whole, jax.random.key(0))))())
    if name == OFFLINE:
      words = config.model.vocab_size
      assert words is not None
      file = DrawnFile(np.asarray(data.train.target_lengths), arguments.top_k, words)
    self._batches = TrainBatches(
      data.train,
      batch_size=config.batch_size,
      seed=config.seed,
      kinds=(LABEL, RATIONALE),
      costs=forward_flops(config.model).of_rows,
      length_multiple=aligned_tokens(config.model.dtype),
      layout=BatchLayout(features=() if file is None else file.features),
    )
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    self._trainer = Trainer(config, optimizer, mesh, teacher, file)
    self._state = self._trainer.init_state()

  def take(self, step: int) -> tuple[float, float]:
    """Takes a step on the examples of that number; returns its seconds, and the processor's."""
    packing, sequences = self._batches.pack(step)
    fill = functools.partial(self._batches.packed.fill, packing, sequences)
    batch = self._trainer.to_mesh(packing.shape.rows, fill)
    started, cpu_started = time.perf_counter(), time.process_time()
    self._state, metrics = self._trainer.train_step(self._state, batch)
    jax.block_until_ready((self._state, metrics))
    return time.perf_counter() - started, time.process_time() - cpu_started


class DrawnFile:
  """Next tokens as LogitStore gives them, of top-k, with drawn numbers."""

  def __init__(self, target_lengths: np.ndarray, count: int, words: int):
    self._lengths = target_lengths
    self._count, self._words = count, words
    self.features = (
      TargetFeature("teacher_ids", (count,), np.dtype(np.uint16), self._ids),
      TargetFeature("teacher_log_probabilities", (count,), np.dtype(np.float16), self._logs),
      TargetFeature(ALIGNED, (), np.dtype(np.float32), self._aligned),
    )

  def signal(self, batch: Any) -> SparseLogits:
    logs = batch["teacher_log_probabilities"].astype(jnp.float32)
    return SparseLogits(batch["teacher_ids"].astype(jnp.int32), logs, self._words)

  def _ids(self, example: int, kind: int) -> np.ndarray:
    """Returns words that differ from each other, as a file's do."""
    first = np.random.default_rng(example).integers(
      self._words - self._count, size=self._tokens(example, kind)
    )
    return (first[:, None] + np.arange(self._count)).astype(np.uint16)

  def _logs(self, example: int, kind: int) -> np.ndarray:
    logs = -2.0 - np.arange(self._count) / 8
    return np.broadcast_to(logs, (self._tokens(example, kind), self._count)).astype(np.float16)

  def _aligned(self, example: int, kind: int) -> np.ndarray:
    return np.ones(self._tokens(example, kind), np.float32)

  def _tokens(self, example: int, kind: int) -> int:
    return int(self._lengths[example, kind])


def _config(arguments: argparse.Namespace, size: str, name: str) -> RunConfig:
  values: dict[str, Any] = {
    "MODEL_DIR": "unused",
    "MIXTURE_OR_TASK_NAME": arguments.task,
    "DATA_DIR": arguments.data_dir,
    "VOCABULARY": arguments.vocabulary,
    "TASK_FEATURE_LENGTHS": {"inputs": 1024, "targets": 256},
    "MeshConfig.data": 1,
  }
  if name != NONE:
    values["LossConfig.extra_terms"] = {"response": 1.0}
  files = ["runs/distill.gin", f"models/{size}.gin"]
  config = load_config(RunConfig, files, [Binding(*item, "") for item in values.items()])
  if name == OFFLINE:
    signals = dataclasses.replace(config.signals, logits="drawn")
    config = dataclasses.replace(config, signals=signals)
  return config


if __name__ == "__main__":
  main()
