"""Our engine against Hugging Face's generate(): the same student, inputs and lengths of answers.

python benchmarks/decode_vs_torch.py --data-dir CQA --vocabulary FILE.model
    [--task cqa] [--student small] [--rows 32] [--mixed-rows 128] [--repeats 5] [--weights float32]

Decodes greedily, in float32, at most --rows rows at a time:

labels: --rows rows of the task's test set, 8 tokens each.
rationales: the same rows, 64 tokens each.
mixed: --mixed-rows rows, every other one a label and a rationale, each of the length that its
  label, or the teacher's rationale, has.

Random weights write no end token, so the lengths are given: our engine ends each row at its
length; generate() goes on to the longest of its batch, as it does when the others have ended. It
gets the inputs sorted by length, and as many threads as make it faster. Both programs run on the
same device, in two processes that alternate. Prints one line of JSON; for each kind of work:

ours_tokens_per_s, peer_tokens_per_s, ratio: medians over the repeats; tokens of answers only.
floor_share: the time of the products of real tokens alone, at the machine's measured rate of
  matrix products (gflops), as a share of our time.
same_ids: the share of answers that are the same in both (of random weights: rounding changes some).

peak_gib, device_peak_gib (of an accelerator): of both processes.

Needs PyTorch and transformers: pip install -c constraints.txt -e '.[torch]'.
"""

import argparse
import functools
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from train_step_vs_torch import (
  device_peak_gib,
  parser,
  peak_gib,
  run_config,
  torch_device_peak_gib,
)

LABEL_TOKENS, RATIONALE_TOKENS = 8, 64


class Job(NamedTuple):
  """The input of both programs."""

  model: Any  # a T5Config
  # Of each kind of work, the (input ids, length of the answer) of its rows.
  works: dict[str, list[tuple[list[int], int]]]
  batch_size: int
  weights: str
  eos_id: int
  pad_id: int
  folder: str  # of the weights that the peer reads


def main() -> None:
  options = parser(__doc__, repeats=5)
  options.add_argument("--rows", type=int, default=32)
  options.add_argument("--mixed-rows", type=int, default=128)
  options.add_argument("--weights", choices=["float32", "bfloat16", "int8"], default="float32")
  arguments = options.parse_args()
  for name in ("torch", "transformers"):
    if importlib.util.find_spec(name) is None:
      sys.exit(f"{name} is not installed: pip install -c constraints.txt -e '.[torch]'")
  with tempfile.TemporaryDirectory() as folder:
    print(json.dumps(compared(make_job(arguments, folder), arguments.repeats)))


def make_job(arguments: argparse.Namespace, folder: str) -> Job:
  """Tokenises the rows."""
  from dss_jax.data.sources import source_from_task
  from dss_jax.data.task_files import load_task
  from dss_jax.data.vocabularies import load_vocabulary
  from dss_jax.student.model_dir import with_vocab_size

  vocabulary = load_vocabulary(arguments.vocabulary)
  config = with_vocab_size(run_config(arguments), vocabulary)
  source = source_from_task(load_task(arguments.task), "test", arguments.data_dir)
  rows = [row for row in source.rows if row.get("output_text") and row.get("rationale")]

  def tokens(text: str) -> list[int]:
    return [*vocabulary.encode(text), vocabulary.eos_id]

  def questions(rows: list[Any], prefix: str) -> list[list[int]]:
    return [tokens(prefix + row["input_text"]) for row in rows]

  labels = questions(rows[: arguments.rows], "predict: ")
  rationales = questions(rows[: arguments.rows], "explain: ")
  mixed = []
  for number, row in enumerate(rows[: arguments.mixed_rows]):
    kind = ("explain", "rationale") if number % 2 else ("predict", "output_text")
    (ids,) = questions([row], f"{kind[0]}: ")
    mixed.append((ids, len(tokens(row[kind[1]]))))
  works = {
    "labels": [(ids, LABEL_TOKENS) for ids in labels],
    "rationales": [(ids, RATIONALE_TOKENS) for ids in rationales],
    "mixed": mixed,
  }
  return Job(
    config.model,
    works,
    arguments.rows,
    arguments.weights,
    vocabulary.eos_id,
    vocabulary.pad_id,
    folder,
  )


def compared(job: Job, repeats: int) -> dict[str, Any]:
  """Returns the figures of both programs, measured alternately."""
  context = multiprocessing.get_context("spawn")
  writer = context.Process(target=write_weights, args=(job,))
  writer.start()
  writer.join()
  programs = {}
  for name, work in (("ours", run_ours), ("peer", run_peer)):
    here, there = context.Pipe()
    context.Process(target=work, args=(job, there), daemon=True).start()
    there.close()
    # One after the other, so that their preparations do not slow down each other.
    programs[name] = here
    here.recv()
  seconds: dict[tuple[str, str], list[float]] = {}
  for repeat in range(repeats):
    for work in job.works:
      for name in ("ours", "peer") if repeat % 2 else ("peer", "ours"):
        programs[name].send(work)
        seconds.setdefault((name, work), []).append(programs[name].recv())
  ends = {}
  for name, connection in programs.items():
    connection.send(None)
    ends[name] = connection.recv()
  return summary(job, seconds, ends)


def random_params(model: Any) -> Any:
  """Returns weights of about the size of trained ones."""
  import jax
  from flax import linen as nn

  from dss_jax.model.t5 import init_params

  return nn.meta.unbox(jax.jit(functools.partial(init_params, model))(jax.random.key(0)))


def write_weights(job: Job) -> None:
  """Writes the weights for the peer, in a process of its own, so that no other's memory grows."""
  import pathlib

  import jax

  from dss_jax.checkpoints.arrays import in_memory
  from dss_jax.checkpoints.hf_write import write_hf

  arrays = {
    ".".join(key.key for key in path): in_memory(np.asarray(leaf))
    for path, leaf in jax.tree_util.tree_leaves_with_path(random_params(job.model))
  }
  float32 = np.dtype(np.float32)
  write_hf(
    arrays,
    job.model,
    pathlib.Path(job.folder),
    dtype=float32,
    max_new_tokens=64,
    eos_id=job.eos_id,
  )


def run_ours(job: Job, connection: Connection) -> None:
  """Runs the requested work with the engine, as `dss predict` does."""
  import jax

  from dss_jax.config.schema import DecodingConfig, MeshConfig
  from dss_jax.decoding.engine import Engine, Request
  from dss_jax.model.flops import forward_flops
  from dss_jax.parallel.mesh import make_mesh

  params = random_params(job.model)
  engine = Engine(
    params,
    job.model,
    DecodingConfig(weights=job.weights),
    make_mesh(MeshConfig(data=1), job.batch_size),
    slots=job.batch_size,
    eos_id=-1,  # rows end at their lengths
    pad_id=job.pad_id,
  )
  del params
  product = jax.jit(lambda a: a @ a)
  square = jax.numpy.ones((2048, 2048))
  rates = []

  def product_rate() -> float:
    started = time.perf_counter()
    product(square).block_until_ready()
    return 2 * 2048**3 / (time.perf_counter() - started) / 1e9

  def run(work: str) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in job.works[work]]
    # Rows of similar length first, as the predictor has them; it does not know where they end.
    order = sorted(range(len(answers)), key=lambda n: len(job.works[work][n][0]).bit_length())
    requests = [Request(*job.works[work][n]) for n in order]
    for piece in engine.decode(requests):
      answers[order[piece.request]] += piece.ids
    return answers

  answers = {}
  for work in job.works:
    answers[work] = run(work)
  connection.send(None)
  while (work := connection.recv()) is not None:
    started = time.perf_counter()
    run(work)
    seconds = time.perf_counter() - started
    rates.append(max(product_rate() for _ in range(3)))
    connection.send(seconds)
  costs = forward_flops(job.model)
  connection.send(
    {
      "answers": answers,
      "gflops": statistics.median(rates),
      "flops": {
        work: sum(costs.of_rows(1, len(ids), length) for ids, length in rows)
        for work, rows in job.works.items()
      },
      "peak_gib": peak_gib(),
      "device_peak_gib": device_peak_gib(),
      "device": jax.devices()[0].device_kind,
      "versions": f"jax {jax.__version__}",
    }
  )


def run_peer(job: Job, connection: Connection) -> None:
  """Runs the same work with generate(), in batches of inputs sorted by length."""
  import torch
  import transformers

  transformers.logging.set_verbosity_error()
  device = "cuda" if torch.cuda.is_available() else "cpu"
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(job.folder).to(device).eval()
  model.generation_config.eos_token_id = None

  @torch.inference_mode()
  def run(work: str) -> list[list[int]]:
    rows = job.works[work]
    answers: list[list[int]] = [[] for _ in rows]
    order = sorted(range(len(rows)), key=lambda n: len(rows[n][0]))
    for start in range(0, len(order), job.batch_size):
      numbers = order[start : start + job.batch_size]
      longest = max(len(rows[n][0]) for n in numbers)
      tokens = [rows[n][0] + [job.pad_id] * (longest - len(rows[n][0])) for n in numbers]
      ids = torch.tensor(tokens, device=device)
      written = model.generate(
        input_ids=ids,
        attention_mask=(ids != job.pad_id).long(),
        max_new_tokens=max(rows[n][1] for n in numbers),
        do_sample=False,
        num_beams=1,
      )
      for n, answer in zip(numbers, written.tolist(), strict=True):
        answers[n] = answer[1 : 1 + rows[n][1]]
    return answers

  def timed(work: str) -> float:
    started = time.perf_counter()
    run(work)
    return time.perf_counter() - started

  threads = os.cpu_count() or 1
  if device == "cpu":
    # On a machine that others use, threads that wait for each other can be slower than one.
    by_threads = {}
    for count in {1, threads}:
      torch.set_num_threads(count)
      timed("labels")
      by_threads[count] = min(timed("labels") for _ in range(2))
    threads = min(by_threads, key=lambda count: by_threads[count])
    torch.set_num_threads(threads)
  answers = {work: run(work) for work in job.works}
  connection.send(None)
  while (work := connection.recv()) is not None:
    connection.send(timed(work))
  versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
  connection.send(
    {
      "answers": answers,
      "threads": threads,
      "peak_gib": peak_gib(),
      "device_peak_gib": torch_device_peak_gib(),
      "versions": versions,
    }
  )


def summary(
  job: Job, seconds: dict[tuple[str, str], list[float]], ends: dict[str, Any]
) -> dict[str, Any]:
  figures: dict[str, Any] = {}
  for work, rows in job.works.items():
    ours, peer = seconds["ours", work], seconds["peer", work]
    tokens = sum(length for _, length in rows)
    ratios = [theirs / own for own, theirs in zip(ours, peer, strict=True)]
    floor = ends["ours"]["flops"][work] / ends["ours"]["gflops"] / 1e9
    pairs = zip(ends["ours"]["answers"][work], ends["peer"]["answers"][work], strict=True)
    figures[work] = {
      "rows": len(rows),
      "tokens": tokens,
      "ours_tokens_per_s": round(tokens / statistics.median(ours), 1),
      "peer_tokens_per_s": round(tokens / statistics.median(peer), 1),
      "ratio": round(statistics.median(ratios), 2),
      "ratios": [round(ratio, 2) for ratio in ratios],
      "floor_share": round(floor / statistics.median(ours), 3),
      "same_ids": round(statistics.mean(own == theirs for own, theirs in pairs), 3),
    }
  return {
    **figures,
    "weights": job.weights,
    "batch_size": job.batch_size,
    "gflops": round(ends["ours"]["gflops"], 1),
    "peer_threads": ends["peer"]["threads"],
    "peak_gib": {name: round(end["peak_gib"], 3) for name, end in ends.items()},
    "device_peak_gib": {name: round(end["device_peak_gib"], 3) for name, end in ends.items()},
    "machine": f"{platform.machine()}, {os.cpu_count()} cores, {ends['ours']['device']}",
    "versions": f"{ends['ours']['versions']}, {ends['peer']['versions']}",
  }


if __name__ == "__main__":
  main()
