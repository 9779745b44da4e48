"""Our training step against PyTorch's: the same students, examples, optimizer and dropout.

python benchmarks/train_step_vs_torch.py --data-dir CQA --vocabulary FILE.model
    [--task cqa] [--student small] [--teacher SIZE] [--batch-size 24] [--repeats 5]
    [--dtype float32]

The peer is Hugging Face's T5 as the paper's code trains it: one pass over the labels and one over
the rationales, each padded to its longest sequence. Both train on the same examples in the same
order, with AdamW, clipping by norm and dropout 0.1, on the same device, in two processes that
alternate, so that a slower machine slows down both. With --teacher, both add KL(teacher || student)
of every target token's distribution over the vocabulary, the teacher being a T5 of that size that
is computed without gradient in the same step. Prints one line of JSON:

ours_examples_per_s, peer_examples_per_s, ratio: medians over the repeats, one step of each.
padding_share, peer_padding_share: of all computed input and target positions.
floor_share: ours as a share of the rate that is possible if only the products of real tokens are
  computed, at the machine's measured rate of matrix products (gflops).
real_tokens_per_s, real_tflops_per_s (of the products of real tokens), peak_gib (of the process),
  device_peak_gib (of an accelerator), first_step_seconds (with compilation): of both.

Needs PyTorch and transformers: pip install -c constraints.txt -e '.[torch]'.
"""

import argparse
import dataclasses
import importlib.util
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

LEARNING_RATE = 5e-5
CLIP_NORM = 1.0


class Job(NamedTuple):
  """The input of both programs; the lists are token ids, end mark included."""

  config: Any  # a RunConfig
  # For each step, the (input, target) pairs of the labels and those of the rationales.
  steps: list[tuple[list[tuple[list[int], list[int]]], ...]]
  example_numbers: list[np.ndarray]
  # The T5Config of a teacher; None trains on the targets alone.
  teacher: Any = None


def main() -> None:
  arguments = parser(__doc__, repeats=5).parse_args()
  for name in ("torch", "transformers"):
    if importlib.util.find_spec(name) is None:
      sys.exit(f"{name} is not installed: pip install -c constraints.txt -e '.[torch]'")
  print(json.dumps(compared(make_job(arguments), run_peer)))


def parser(description: str, *, repeats: int) -> argparse.ArgumentParser:
  """Returns the parser of the flags that all comparisons of training steps share."""
  parser = argparse.ArgumentParser(description=description.splitlines()[0])
  parser.add_argument("--data-dir", required=True)
  parser.add_argument("--vocabulary", required=True)
  parser.add_argument("--task", default="cqa")
  parser.add_argument("--student", default="small")
  parser.add_argument("--teacher", help="a size of gin_configs/models")
  parser.add_argument("--batch-size", type=int, default=24)
  parser.add_argument("--repeats", type=int, default=repeats)
  parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
  return parser


def compared(job: Job, run_peer: Callable[..., None], *more: Any) -> dict[str, Any]:
  """Returns the figures of our step and of the peer's, measured alternately.

  Args:
    run_peer: the function of the peer's process; its arguments are the job, a connection, `more`.
  """
  context = multiprocessing.get_context("spawn")
  programs = {}
  for name, work, further in (("ours", run_ours, ()), ("peer", run_peer, more)):
    here, there = context.Pipe()
    context.Process(target=work, args=(job, there, *further), daemon=True).start()
    there.close()
    # One after the other, so that their preparations do not slow down each other.
    programs[name] = here, here.recv()
  seconds: dict[str, list[float]] = {"ours": [], "peer": []}
  for repeat in range(len(job.steps)):
    for name in ("ours", "peer") if repeat % 2 else ("peer", "ours"):
      programs[name][0].send(repeat)
      seconds[name].append(programs[name][0].recv())
  ends = {}
  for name, (connection, first) in programs.items():
    connection.send(None)
    ends[name] = {**first, **connection.recv()}
  return summary(job, seconds, ends)


def run_config(arguments: argparse.Namespace, size: str | None = None) -> Any:
  """Returns the configuration of a run, by default of the student's size."""
  from dss_jax.config.gin_loader import Binding, load_config
  from dss_jax.config.schema import RunConfig

  values = {
    "MODEL_DIR": "unused",
    "MIXTURE_OR_TASK_NAME": arguments.task,
    "DATA_DIR": arguments.data_dir,
    "VOCABULARY": arguments.vocabulary,
    "BATCH_SIZE": arguments.batch_size,
    "TASK_FEATURE_LENGTHS": {"inputs": 1024, "targets": 256},
    "OptimizerConfig.name": "adamw",
    "OptimizerConfig.base_learning_rate": LEARNING_RATE,
    "OptimizerConfig.clip_norm": CLIP_NORM,
    "T5Config.dtype": arguments.dtype,
    "MeshConfig.data": 1,
  }
  if arguments.teacher:
    values["LossConfig.extra_terms"] = {"response": 1.0}
  files = ["runs/distill.gin", f"models/{size or arguments.student}.gin"]
  return load_config(RunConfig, files, [Binding(*item, "") for item in values.items()])


def make_job(arguments: argparse.Namespace) -> Job:
  """Tokenises the task's rows and selects the examples of each step."""
  from dss_jax.config.schema import LABEL, RATIONALE
  from dss_jax.data.batches import example_numbers
  from dss_jax.data.pipeline import prepare
  from dss_jax.student.model_dir import with_vocab_size

  config = run_config(arguments)
  data = prepare(config.data, (LABEL, RATIONALE))
  numbers = [
    example_numbers(
      step, batch_size=arguments.batch_size, num_examples=len(data.train.input_lengths), seed=0
    )
    for step in range(arguments.repeats)
  ]

  def pairs(examples, task):
    return [
      (data.train.input_tokens(n, task).tolist(), data.train.target_tokens(n, task).tolist())
      for n in examples
      if data.train.target_lengths[n, task]
    ]

  steps = [tuple(pairs(examples, task) for task in (LABEL, RATIONALE)) for examples in numbers]
  teacher = None
  if arguments.teacher:
    teacher = with_vocab_size(run_config(arguments, arguments.teacher), data.vocabulary).model
  return Job(with_vocab_size(config, data.vocabulary), steps, numbers, teacher)


def our_trainer(job: Job) -> tuple[Any, Any]:
  """Returns the Trainer and the TrainBatches of the job, as in `dss distill`."""
  import jax
  from flax import linen as nn

  from dss_jax.config.schema import LABEL, RATIONALE
  from dss_jax.data.batches import TrainBatches
  from dss_jax.data.packing import aligned_tokens
  from dss_jax.data.pipeline import prepare
  from dss_jax.model.flops import forward_flops
  from dss_jax.model.t5 import init_params
  from dss_jax.parallel.mesh import make_mesh
  from dss_jax.train.optimizer import make_optimizer
  from dss_jax.train.step import Trainer
  from dss_jax.train.teacher_network import TeacherNetwork

  config = job.config
  batches = TrainBatches(
    prepare(config.data, (LABEL, RATIONALE)).train,
    batch_size=config.batch_size,
    seed=0,
    kinds=(LABEL, RATIONALE),
    costs=forward_flops(config.model).of_rows,
    length_multiple=aligned_tokens(config.model.dtype),
  )
  mesh = make_mesh(config.mesh, config.batch_size)
  network = None
  if job.teacher is not None:
    network = TeacherNetwork(dataclasses.replace(job.teacher, dropout_rate=0.0), mesh)
    init = jax.jit(lambda: nn.meta.unbox(init_params(job.teacher, jax.random.key(0))))
    network.load(init())
  optimizer = make_optimizer(config.optimizer, config.train_steps)
  return Trainer(config, optimizer, mesh, network), batches


def run_ours(job: Job, connection: Connection) -> None:
  """Runs the requested steps, as in `dss distill`."""
  import jax

  from dss_jax.model.flops import forward_flops

  trainer, batches = our_trainer(job)
  state = trainer.init_state()
  product = jax.jit(lambda a: a @ a)
  square = jax.numpy.ones((2048, 2048), job.config.model.dtype)
  rates = []

  def product_rate():
    started = time.perf_counter()
    product(square).block_until_ready()
    return 2 * 2048**3 / (time.perf_counter() - started) / 1e9

  def run_step(number):
    nonlocal state
    packing, sequences = batches.packed.pack(job.example_numbers[number])
    batch = trainer.to_mesh(
      packing.shape.rows, lambda rows: batches.packed.fill(packing, sequences, rows)
    )
    started = time.perf_counter()
    state, metrics = trainer.train_step(state, batch)
    jax.block_until_ready((state, metrics))
    seconds = time.perf_counter() - started
    # Measured after each step, since other work on the machine changes its rate.
    rates.append(max(product_rate() for _ in range(3)))
    return seconds

  first = run_step(0)
  for number in range(len(job.steps)):  # compiles every shape before the measurement
    run_step(number)
  serve(connection, first, run_step)
  shapes = [batches.packed.packer.pack(lengths_of(step)).shape for step in job.steps]
  positions = sum(rows * (inputs + targets) for rows, inputs, targets in shapes)
  costs = forward_flops(job.config.model)
  sequences = [pair for step in job.steps for pairs in step for pair in pairs]
  flops = 3 * sum(costs.of_rows(1, *map(len, pair)) for pair in sequences)
  if job.teacher is not None:
    of_teacher = forward_flops(job.teacher)
    flops += sum(of_teacher.of_rows(1, *map(len, pair)) for pair in sequences)
  connection.send(
    {
      "positions": positions,
      "peak_gib": peak_gib(),
      "device_peak_gib": device_peak_gib(),
      "gflops": statistics.median(rates[-2 * len(job.steps) :]),
      "real_flops_a_step": flops / len(job.steps),
      "device": jax.devices()[0].device_kind,
      "versions": f"jax {jax.__version__}",
    }
  )


def run_peer(job: Job, connection: Connection) -> None:
  """Runs the same steps in PyTorch: two padded passes and one update."""
  import torch
  import transformers

  def network(config):
    return transformers.T5ForConditionalGeneration(
      transformers.T5Config(
        vocab_size=config.vocab_size,
        d_model=config.emb_dim,
        d_kv=config.head_dim,
        d_ff=config.mlp_dim,
        num_layers=config.num_encoder_layers,
        num_decoder_layers=config.num_decoder_layers,
        num_heads=config.num_heads,
        dropout_rate=config.dropout_rate,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
      )
    ).to(device, getattr(torch, config.dtype))

  device = "cuda" if torch.cuda.is_available() else "cpu"
  if device == "cpu":
    torch.set_num_threads(os.cpu_count() or 1)
  torch.manual_seed(0)
  model = network(job.config.model).train()
  teacher = None if job.teacher is None else network(job.teacher).eval().requires_grad_(False)
  optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)

  def padded(rows, value):
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows], device=device)

  def loss_of(batch):
    output = model(**batch)
    if teacher is None:
      return output.loss
    with torch.no_grad():
      wanted = teacher(**batch).logits
    apart = torch.nn.functional.kl_div(
      output.logits.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none"
    )
    return output.loss + apart.sum(-1)[batch["labels"] != -100].mean()

  def run_step(number):
    passes = []
    for pairs in job.steps[number]:
      inputs, targets = zip(*pairs, strict=True)
      ids = padded(inputs, 0)
      passes.append(
        {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": padded(targets, -100)}
      )
    started = time.perf_counter()
    losses = [loss_of(each) for each in passes]
    (0.5 * losses[0] + 0.5 * losses[1]).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if device == "cuda":
      torch.cuda.synchronize()
    return time.perf_counter() - started

  first = run_step(0)
  run_step(0)
  serve(connection, first, run_step)
  positions = sum(
    len(pairs) * max(len(pair[side]) for pair in pairs)
    for step in job.steps
    for pairs in step
    for side in (0, 1)
  )
  versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
  connection.send(
    {
      "positions": positions,
      "peak_gib": peak_gib(),
      "device_peak_gib": torch_device_peak_gib(),
      "versions": versions,
    }
  )


def serve(connection: Connection, first_step_seconds: float, run_step: Any) -> None:
  """Runs the steps whose numbers are received, until None; each twice, the second is timed.

  In a run, steps follow each other directly. Here a first step after one of the other program's
  is slower, since the machine has reused its memory and caches.
  """
  connection.send({"first_step_seconds": first_step_seconds})
  while (number := connection.recv()) is not None:
    run_step(number)
    connection.send(run_step(number))


def lengths_of(step: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns the input and target lengths of a step's sequences."""
  inputs, targets = zip(*((len(a), len(b)) for pairs in step for a, b in pairs), strict=True)
  return np.array(inputs), np.array(targets)


def peak_gib() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def device_peak_gib() -> float:
  """Returns the peak of JAX's memory on an accelerator; 0 on a CPU."""
  import jax

  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get("peak_bytes_in_use", 0) / 2**30


def torch_device_peak_gib() -> float:
  """Returns the peak of PyTorch's memory on an accelerator; 0 on a CPU."""
  import torch

  return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def summary(job: Job, seconds: dict[str, list[float]], ends: dict[str, Any]) -> dict[str, Any]:
  batch_size = job.config.batch_size
  real = sum(int(side.sum()) for step in job.steps for side in lengths_of(step))
  median = {name: statistics.median(values) for name, values in seconds.items()}
  ratios = [peer / ours for ours, peer in zip(seconds["ours"], seconds["peer"], strict=True)]
  floor_seconds = ends["ours"]["real_flops_a_step"] / ends["ours"]["gflops"] / 1e9

  def rounded(values):
    return {name: round(value, 3) for name, value in values.items()}

  return {
    "task": job.config.data.task,
    "student": job.config.student,
    "batch_size": batch_size,
    "dtype": job.config.model.dtype,
    "ours_examples_per_s": round(batch_size / median["ours"], 3),
    "peer_examples_per_s": round(batch_size / median["peer"], 3),
    "ratio": round(statistics.median(ratios), 3),
    "ratios": [round(ratio, 3) for ratio in ratios],
    "padding_share": round(1 - real / ends["ours"]["positions"], 4),
    "peer_padding_share": round(1 - real / ends["peer"]["positions"], 4),
    "floor_share": round(floor_seconds / median["ours"], 3),
    "gflops": round(ends["ours"]["gflops"], 1),
    "real_tokens_per_s": rounded(
      {name: real / len(job.steps) / value for name, value in median.items()}
    ),
    "real_tflops_per_s": rounded(
      {name: ends["ours"]["real_flops_a_step"] / value / 1e12 for name, value in median.items()}
    ),
    "peak_gib": rounded({name: end["peak_gib"] for name, end in ends.items()}),
    "device_peak_gib": rounded({name: end["device_peak_gib"] for name, end in ends.items()}),
    "first_step_seconds": rounded({name: end["first_step_seconds"] for name, end in ends.items()}),
    "machine": f"{platform.machine()}, {os.cpu_count()} cores, {ends['ours']['device']}",
    "versions": f"{ends['ours']['versions']}, {ends['peer']['versions']}",
  }


if __name__ == "__main__":
  main()
