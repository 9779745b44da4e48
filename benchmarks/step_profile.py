"""The time of a training step by kind of work.

python benchmarks/step_profile.py --data-dir CQA --vocabulary FILE.model
    [--task cqa] [--student small] [--batch-size 24] [--repeats 3] [--dtype float32]

Runs the first step of train_step_vs_torch.py alternately without and with a trace, and prints one
line of JSON:

seconds_a_step: the median over the repeats, not traced.
input_seconds: making the batch and copying it to the device; a run does that during the step.
seconds, share: of a step, for each kind of work.
longest: the ten longest operations of a step, with the scope that they come from.

Operations that run at the same time share that time equally. Idle time belongs to the operation
that ended last: XLA's matrix products continue in the background after their event has ended.
What the compiler fuses into a product (the exponentials of attention) counts as the product.
"""

import collections
import glob
import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from train_step_vs_torch import Job, make_job, our_trainer, parser


class Event(NamedTuple):
  """One run of an operation, in nanoseconds of the trace."""

  start: float
  end: float
  operation: str


class Operation(NamedTuple):
  """An operation of the compiled program: its line and those fused into it, and its scope."""

  text: str
  scope: str


def main() -> None:
  arguments = parser(__doc__, repeats=3).parse_args()
  print(json.dumps(profiled(make_job(arguments))))


def profiled(job: Job) -> dict[str, Any]:
  """Returns the figures of the job's first step, repeated as often as the job has steps."""
  import jax

  trainer, batches = our_trainer(job)
  started = time.perf_counter()
  packing, sequences = batches.packed.pack(job.example_numbers[0])
  batch = jax.block_until_ready(
    trainer.to_mesh(packing.shape.rows, lambda rows: batches.packed.fill(packing, sequences, rows))
  )
  input_seconds = time.perf_counter() - started
  program = trainer.lower(packing.shape).compile()
  known = operations(program.as_text())
  state = trainer.init_state()

  def step() -> float:
    nonlocal state
    started = time.perf_counter()
    state, _ = jax.block_until_ready(program(state, batch, np.uint32(job.config.seed)))
    return time.perf_counter() - started

  for _ in range(2):  # allocates the memory
    step()
  step_seconds = []
  seconds: dict[str, float] = collections.defaultdict(float)
  by_operation: dict[tuple[str, str], float] = collections.defaultdict(float)
  repeats = len(job.example_numbers)
  for _ in range(repeats):
    step_seconds.append(step())
    with tempfile.TemporaryDirectory() as folder:
      with jax.profiler.trace(folder):
        step()
      taken = time_taken(events(folder))
    for name, nanoseconds in taken.items():
      operation = known.get(name, Operation("", ""))
      seconds[kind(operation)] += nanoseconds / 1e9 / repeats
      by_operation[name, operation.scope] += nanoseconds / 1e9 / repeats
  total = sum(seconds.values())
  return {
    "task": job.config.data.task,
    "student": job.config.student,
    "batch_size": job.config.batch_size,
    "dtype": job.config.model.dtype,
    "seconds_a_step": round(statistics.median(step_seconds), 3),
    "input_seconds": round(input_seconds, 4),
    "seconds": {name: round(value, 4) for name, value in longest_first(seconds)},
    "share": {name: round(value / total, 4) for name, value in longest_first(seconds)},
    "longest": [
      [name, scope, round(value, 4)] for (name, scope), value in longest_first(by_operation)[:10]
    ],
    "device": jax.devices()[0].device_kind,
    "versions": f"jax {jax.__version__}",
  }


def longest_first(seconds: dict[Any, float]) -> list[tuple[Any, float]]:
  return sorted(seconds.items(), key=lambda item: -item[1])


def events(folder: str, module: str = "train_step") -> list[Event]:
  """Returns the runs of operations in the trace of the folder, of programs of this name."""
  import jax

  (path,) = glob.glob(f"{folder}/plugins/profile/*/*.xplane.pb")
  found = []
  for plane in jax.profiler.ProfileData.from_file(path).planes:
    for line in plane.lines:
      for event in line.events:
        stats = dict(event.stats)
        if module in str(stats.get("hlo_module")) and "hlo_op" in stats:
          found.append(Event(event.start_ns, event.end_ns, str(stats["hlo_op"])))
  return found


def time_taken(events: Iterable[Event]) -> dict[str, float]:
  """Returns each operation's part of the time from the first start to the last end.

  Operations that run at the same time share that time equally; idle time belongs to the
  operation that ended last. The parts add up to the whole time.
  """
  edges = sorted(
    edge
    for number, event in enumerate(events)
    for edge in ((event.start, 1, number, event), (event.end, 0, number, event))
  )
  taken: dict[str, float] = collections.defaultdict(float)
  running: dict[int, str] = {}
  before = edges[0][0]
  last = edges[0][3].operation
  for now, starts, number, event in edges:
    for operation in running.values() or [last]:
      taken[operation] += (now - before) / max(len(running), 1)
    before = now
    if starts:
      running[number] = event.operation
    elif running.pop(number, None):
      last = event.operation
  return dict(taken)


def operations(program: str) -> dict[str, Operation]:
  """Returns the operations of a compiled program's text by name."""
  computation = r"^(?:ENTRY )?%?([\w.-]+) \([^\n]*\{\n(.*?)^\}"
  bodies = dict(re.findall(computation, program, re.MULTILINE | re.DOTALL))
  found = {}
  for name, text in re.findall(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$", program, re.MULTILINE):
    scope = re.search(r'op_name="([^"]*)"', text)
    fused = re.search(r"calls=%?([\w.-]+)", text)
    body = bodies.get(fused[1], "") if fused else ""
    found[name] = Operation(f"{name} = {text}\n{body}", scope[1] if scope else "")
  return found


def kind(operation: Operation) -> str:
  """Returns an operation's kind of work, from its text and scope."""
  text, scope = operation
  product = re.search(r" dot\(.*| custom-call\(.*gemm.*", text)
  if product:
    if "attention" in scope and "batch_dims" in product[0]:
      return "products of attention"
    return f"products of {'the vocabulary' if 'cross_entropy' in scope else 'weights'}"
  if re.match(r"(wrapped_)?(transpose|copy)", text):
    return "copies and transposes"
  for part, name in (
    ("cross_entropy", "softmax over the vocabulary"),
    ("optimizer", "optimizer"),
    ("dropout", "dropout"),
    ("attention/", "softmax of attention"),
    ("Transformer", "norms, activations and sums"),
  ):
    if part in scope:
      return name
  return "other"


if __name__ == "__main__":
  main()
