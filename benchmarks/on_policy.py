"""The time of an on-policy step beside one on the rows' own targets.

python benchmarks/on_policy.py [--student small] [--teacher small] [--batch-size 24]
    [--input-tokens 64] [--max-tokens 64] [--repeats 5] [--dtype float32]

Takes steps of both kinds by turns, with random weights and rows of random tokens whose rationales
have as many tokens as samples may have, and prints one line of JSON:

ordinary_seconds: a step on the rows' targets with their cross-entropy and the teacher's response.
sampling_seconds: sampling the targets of a batch, none of which ends early: the longest it takes.
sampled_seconds: a step on them, the sampling included.
ratio: of the sampled step's to the ordinary one's.

Each is the median over the repeats.
"""

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np


class RandomRows:
  """Rows of random tokens as TokenStore gives them; each kind of text has one length."""

  def __init__(self, rows: int, words: int, input_tokens: int, target_tokens: int):
    self.input_lengths = np.full((rows, 2), input_tokens)
    self.target_lengths = np.tile([4, target_tokens], (rows, 1))
    self._words = words

  def input_tokens(self, example: int, kind: int) -> np.ndarray:
    return self._tokens(example, kind, 0, self.input_lengths[example, kind])

  def target_tokens(self, example: int, kind: int) -> np.ndarray:
    return self._tokens(example, kind, 1, self.target_lengths[example, kind])

  def _tokens(self, example: int, kind: int, side: int, length: int) -> np.ndarray:
    generator = np.random.default_rng([example, kind, side])
    return generator.integers(2, self._words, length).astype(np.int32)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--student", default="small")
  parser.add_argument("--teacher", default="small")
  parser.add_argument("--batch-size", type=int, default=24)
  parser.add_argument("--input-tokens", type=int, default=64)
  parser.add_argument("--max-tokens", type=int, default=64)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
  print(json.dumps(measured(parser.parse_args())))


def run_config(arguments: argparse.Namespace, size: str) -> Any:
  from dss_jax.config.gin_loader import Binding, load_config
  from dss_jax.config.schema import RunConfig

  values = {
    "MODEL_DIR": "unused",
    "DATASET": "unused",
    "BATCH_SIZE": arguments.batch_size,
    "SignalConfig.model": "random",
    "T5Config.vocab_size": 32128,
    "T5Config.dtype": arguments.dtype,
    "OnPolicyConfig.max_tokens": arguments.max_tokens,
  }
  bindings = [Binding(name, value, name) for name, value in values.items()]
  return load_config(RunConfig, ["runs/on_policy.gin", f"models/{size}.gin"], bindings)


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
  import functools

  import jax
  from flax import linen as nn

  from dss_jax.config.schema import MeshConfig
  from dss_jax.data.batches import TrainBatches
  from dss_jax.data.on_policy import OnPolicyBatches
  from dss_jax.model.flops import forward_flops
  from dss_jax.model.t5 import init_params
  from dss_jax.parallel.mesh import make_mesh
  from dss_jax.train.on_policy import OnPolicy
  from dss_jax.train.optimizer import make_optimizer
  from dss_jax.train.step import Trainer
  from dss_jax.train.teacher_network import TeacherNetwork

  config = run_config(arguments, arguments.student)
  mesh = make_mesh(MeshConfig(data=1), arguments.batch_size)
  teacher = TeacherNetwork(run_config(arguments, arguments.teacher).model, mesh)
  weights = jax.jit(functools.partial(init_params, teacher.config))(jax.random.key(1))
  teacher.load(nn.meta.unbox(weights))
  trainer = Trainer(config, make_optimizer(config.optimizer, config.train_steps), mesh, teacher)
  rows = RandomRows(256, 32000, arguments.input_tokens, arguments.max_tokens)
  costs = forward_flops(config.model).of_rows
  train = TrainBatches(rows, batch_size=arguments.batch_size, seed=0, kinds=(0, 1), costs=costs)
  sampled = OnPolicyBatches(rows, train, kinds=(0, 1), max_tokens=arguments.max_tokens, costs=costs)
  # No token has the id of the end token.
  on_policy = OnPolicy(config, trainer, sampled, eos_id=-1, pad_id=0)
  state = trainer.init_state()
  seconds: dict[str, list[float]] = {"ordinary": [], "sampling": [], "sampled": []}
  for step in range(1 + arguments.repeats):
    started = time.perf_counter()
    packing, sequences = train.pack(step)
    fill = functools.partial(train.packed.fill, packing, sequences)
    state, _ = trainer.train_step(state, trainer.to_mesh(packing.shape.rows, fill))
    jax.block_until_ready(state)
    seconds["ordinary"].append(time.perf_counter() - started)
    started = time.perf_counter()
    batch, _ = on_policy.batch(state.params, step)
    seconds["sampling"].append(time.perf_counter() - started)
    state, _ = trainer.train_step(state, batch, on_policy=True)
    jax.block_until_ready(state)
    seconds["sampled"].append(time.perf_counter() - started)
  # The first of each compiles.
  medians = {name: statistics.median(each[1:]) for name, each in seconds.items()}
  return {
    "student": arguments.student,
    "teacher": arguments.teacher,
    **{f"{name}_seconds": round(value, 3) for name, value in medians.items()},
    "ratio": round(medians["sampled"] / medians["ordinary"], 2),
  }


if __name__ == "__main__":
  main()
