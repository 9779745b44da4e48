"""The time of a step of decoding by kind of work.

python benchmarks/decode_profile.py [--student small] [--rows 32] [--cache 64] [--source 64]
    [--repeats 5] [--weights float32]

Runs 16 steps of rows in all slots without and with a trace, by turns, and prints one line of JSON:

ms_a_step: the median over the repeats, not traced.
ms, share: of a step, for each kind of work, as in step_profile.py.
gflops: of the products with weights.
argument_mib, temporary_mib: the memory of the compiled steps, by the compiler's own analysis.
"""

import argparse
import collections
import json
import re
import statistics
import tempfile
import time
from typing import Any

import numpy as np
from decode_vs_torch import random_params
from step_profile import Operation, events, longest_first, operations, time_taken

STEPS = 16


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--student", default="small")
  parser.add_argument("--rows", type=int, default=32)
  parser.add_argument("--cache", type=int, default=64)
  parser.add_argument("--source", type=int, default=64)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--weights", choices=["float32", "bfloat16", "int8"], default="float32")
  print(json.dumps(profiled(parser.parse_args())))


def profiled(arguments: argparse.Namespace) -> dict[str, Any]:
  import functools

  import jax

  from dss_jax.config.gin_loader import Binding, load_config
  from dss_jax.config.schema import DecodingConfig, RunConfig
  from dss_jax.decoding.slots import advance, empty_slots
  from dss_jax.decoding.weights import decoding_weights
  from dss_jax.model.flops import forward_flops

  settings = {"MODEL_DIR": "unused", "T5Config.vocab_size": 32128}
  model = load_config(
    RunConfig,
    ["runs/distill.gin", f"models/{arguments.student}.gin"],
    [Binding(*item, "") for item in settings.items()],
  ).model
  weights = decoding_weights(random_params(model), model, arguments.weights)
  make = jax.jit(
    functools.partial(empty_slots, model, arguments.rows, arguments.cache, arguments.source)
  )
  program = functools.partial(
    advance, model=model, decoding=DecodingConfig(), eos_id=-1, steps=STEPS
  )
  keep = np.ones(arguments.rows, bool)
  few = (np.int32(STEPS), np.int32(arguments.rows + 1))
  compiled = jax.jit(program, donate_argnums=1).lower(weights, make(), keep, *few).compile()
  known = operations(compiled.as_text())

  memory = compiled.memory_analysis()

  def run() -> float:
    slots = make()
    rows = np.full(arguments.rows, arguments.cache, np.int32)
    slots = jax.block_until_ready(slots.replace(live_B=keep, limits_B=rows))
    started = time.perf_counter()
    jax.block_until_ready(compiled(weights, slots, keep, *few))
    return (time.perf_counter() - started) / STEPS

  run()
  seconds = []
  taken: dict[str, float] = collections.defaultdict(float)
  for _ in range(arguments.repeats):
    seconds.append(run())
    with tempfile.TemporaryDirectory() as folder:
      with jax.profiler.trace(folder):
        run()
      traced = [
        each for each in events(folder, "advance") if not each.operation.startswith("while")
      ]
    for name, nanoseconds in time_taken(traced).items():
      taken[kind(known.get(name, Operation("", "")))] += (
        nanoseconds / 1e6 / STEPS / arguments.repeats
      )
  total = sum(taken.values())
  products = sum(ms for name, ms in taken.items() if name.startswith("products with"))
  flops = arguments.rows * forward_flops(model).target_token
  return {
    "student": arguments.student,
    "rows": arguments.rows,
    "cache": arguments.cache,
    "source": arguments.source,
    "weights": arguments.weights,
    "ms_a_step": round(1e3 * statistics.median(seconds), 2),
    "ms": {name: round(value, 2) for name, value in longest_first(taken)},
    "share": {name: round(value / total, 3) for name, value in longest_first(taken)},
    "gflops": round(flops / products / 1e6, 1),
    "argument_mib": memory.argument_size_in_bytes >> 20,
    "temporary_mib": memory.temp_size_in_bytes >> 20,
    "device": jax.devices()[0].device_kind,
    "versions": f"jax {jax.__version__}",
  }


def kind(operation: Operation) -> str:
  """Returns an operation's kind of work, from its text and scope."""
  text, scope = operation
  if "dot_general" in scope or " dot(" in text:
    if re.search(r"bhk|bht|batch_dims", text + scope):
      return "products of attention"
    return "products with the vocabulary" if "32128" in text else "products with other weights"
  if "dynamic_update" in scope:
    return "writing the cache"
  if "branch" in scope or "argmax" in scope or "32128" in text:
    return "choosing the token"
  if re.search(r"softmax|reduce_max|exp", scope):
    return "softmax"
  if "transpose" in text:
    return "transposes"
  return "norms, activations and sums"


if __name__ == "__main__":
  main()
