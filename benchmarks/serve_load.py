"""Load on `dss serve`: latency, refusals, and throughput relative to decoding offline.

python benchmarks/serve_load.py --model DIR --dataset rows.jsonl [--clients 64] [--seconds 60]

First answers the rows offline, with the slots that the server has, for a quarter of the time; then
starts `dss serve` in a process of its own, on loopback, and asks it by `clients` connections, each
sending its next row when the last one is answered. Every third request asks for the rationale,
too. Prints one line of JSON: answers (a label or a rationale) per second of both and their ratio,
latency percentiles in seconds by kind of request, and the number of each status but 200.
"""

import argparse
import asyncio
import collections
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import aiohttp
import numpy as np

SLOTS = 32


def offline_rate(model: str, texts: list[str], seconds: float) -> float:
  """Returns the answers per second of a predictor, without the time to compile."""
  from dss_jax.config.schema import MeshConfig
  from dss_jax.parallel.mesh import make_mesh
  from dss_jax.storage.cache import keep_compiled_programs
  from dss_jax.student.predictor import Predictor
  from dss_jax.student.questions import Question
  from dss_jax.student.student import Student

  keep_compiled_programs()
  predictor = Predictor(Student.open(model), make_mesh(MeshConfig(), SLOTS), batch_size=SLOTS)

  def questions():
    for number, text in enumerate(itertools.cycle(texts)):
      if time.monotonic() > end:
        return
      if number % 3 == 0:
        yield Question(text, "rationale")
      yield Question(text, "label")

  for warm_up in (True, False):
    started = time.monotonic()
    end = started + (seconds / 2 if warm_up else seconds)
    answers = sum(part.is_last for part in predictor.stream(questions()))
    rate = answers / (time.monotonic() - started)
  return rate


async def load(url: str, name: str, texts: list[str], clients: int, seconds: float):
  """Returns (explains, seconds, status, time of the end) of each request."""
  rows = itertools.count()
  done = []
  end = time.monotonic() + seconds

  async def client(session: aiohttp.ClientSession) -> None:
    while time.monotonic() < end:
      number = next(rows)
      explains = number % 3 == 0
      body = {"model": name, "prompt": texts[number % len(texts)], "explain": explains}
      started = time.monotonic()
      async with session.post(f"{url}/completions", json=body) as response:
        await response.read()
        now = time.monotonic()
        done.append((explains, now - started, response.status, now))
        if response.status == 429:
          await asyncio.sleep(float(response.headers["retry-after"]))

  connector = aiohttp.TCPConnector(limit=0)
  async with aiohttp.ClientSession(connector=connector) as session:
    await asyncio.gather(*(client(session) for _ in range(clients)))
  return done


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", required=True)
  parser.add_argument("--dataset", required=True)
  parser.add_argument("--clients", type=int, default=64)
  parser.add_argument("--seconds", type=float, default=60.0)
  arguments = parser.parse_args()
  from dss_jax.data.records import read_rows

  texts = [row["input_text"] for row in read_rows(arguments.dataset)]
  offline = offline_rate(arguments.model, texts, arguments.seconds / 4)
  with tempfile.TemporaryFile("w+") as log:
    command = [sys.executable, "-m", "dss_jax.cli.main", "serve", "--model", arguments.model,
               "--port", "0", "--slots", str(SLOTS)]  # fmt: skip
    server = subprocess.Popen(command, stderr=log, env=os.environ)
    try:
      url = None
      while url is None:
        assert server.poll() is None, "the server ended"
        time.sleep(0.2)
        log.seek(0)
        found = re.search(r"ready: .* at (\S+)", log.read())
        url = found and found[1]
      name = pathlib.Path(arguments.model).resolve().name
      # Compiles the programs that these inputs need.
      asyncio.run(load(url, name, texts, arguments.clients, arguments.seconds / 4))
      started = time.monotonic()
      done = asyncio.run(load(url, name, texts, arguments.clients, arguments.seconds))
      seconds = max(end for *_, end in done) - started
    finally:
      server.send_signal(signal.SIGTERM)
      server.wait()
  good = [one for one in done if one[2] == 200]
  served = sum(2 if explains else 1 for explains, *_ in good) / seconds
  result = {
    "clients": arguments.clients,
    "seconds": round(seconds, 1),
    "requests": len(good),
    "offline_answers_per_second": round(offline, 2),
    "served_answers_per_second": round(served, 2),
    "ratio": round(served / offline, 3),
    "other_statuses": dict(collections.Counter(one[2] for one in done if one[2] != 200)),
  }
  for kind, explains in (("label", False), ("explained", True)):
    latencies = [one[1] for one in good if one[0] is explains]
    percentiles = np.percentile(latencies, (50, 95, 99)) if latencies else []
    result[f"{kind}_seconds_p50_p95_p99"] = [round(float(value), 3) for value in percentiles]
  print(json.dumps(result))


if __name__ == "__main__":
  main()
