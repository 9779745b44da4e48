"""Throughput of `dss annotate` relative to the bound of the teacher's latency, and its memory.

python benchmarks/annotate_throughput.py [--rows 3200] [--in-flight 32] [--latency-seconds 0.1]

A server in another process, on loopback, answers every chat request after a fixed time, so at
most in_flight / latency rows/s are possible. Prints one line of JSON: rows_per_second, its ratio
to that bound, the same ratio for a bare client that builds, parses and stores nothing (the
limit of server and machine), the resident memory in MiB at each tenth of the rows and at the end,
and how long the client waited for a CPU: on a busy machine the ratios mean little.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import pathlib
import resource
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.prompts import load_prompt
from dss_jax.annotation.run import RequestConfig, annotate
from dss_jax.data.records import Row
from dss_jax.teachers.http import HttpTeacher

ANSWER = "There are 3 boxes of 4. So there are 3 * 4 = 12. The answer is (3 * 4)."


async def serve(port: Connection, latency_seconds: float) -> None:
  """Sends its port once, then answers every request after the latency."""
  body = json.dumps(
    {
      "model": "fixed",
      "choices": [{"message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
      "usage": {"prompt_tokens": 600, "completion_tokens": 30},
    }
  ).encode()
  head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
  response = head.encode() + body

  async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
      while True:
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        await asyncio.sleep(latency_seconds)
        writer.write(response)
    writer.close()

  server = await asyncio.start_server(answer, "127.0.0.1", 0)
  port.send(server.sockets[0].getsockname()[1])
  await server.serve_forever()


def run_server(port: Connection, latency_seconds: float) -> None:
  asyncio.run(serve(port, latency_seconds))


async def bare_rows_per_second(port: int, in_flight: int, requests: int) -> float:
  """Returns the requests a second of a client that sends constant bytes and ignores the answers."""
  body = b"x" * 4000
  request = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body
  left = iter(range(requests))

  async def ask() -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in left:
      writer.write(request)
      head = (await reader.readuntil(b"\r\n\r\n")).lower()
      await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
    writer.close()

  started = time.monotonic()
  await asyncio.gather(*[ask() for _ in range(in_flight)])
  return requests / (time.monotonic() - started)


def resident_mib() -> float:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def waited_for_cpu_seconds() -> float:
  """Returns how long the main thread of this process has waited for a CPU (Linux only)."""
  return int(pathlib.Path("/proc/self/schedstat").read_text().split()[1]) / 1e9


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rows", type=int, default=3200)
  parser.add_argument("--in-flight", type=int, default=32)
  parser.add_argument("--latency-seconds", type=float, default=0.1)
  arguments = parser.parse_args()
  memory: list[float] = []

  def rows() -> Iterator[Row]:
    for number in range(arguments.rows):
      if number % max(arguments.rows // 10, 1) == 0:
        memory.append(resident_mib())
      yield {"input_text": f"Shop {number} has 3 boxes of 4 pens.\nHow many pens are there?"}

  receiver, sender = multiprocessing.Pipe(duplex=False)
  server = multiprocessing.Process(
    target=run_server, args=(sender, arguments.latency_seconds), daemon=True
  )
  server.start()
  port = receiver.recv()
  bare = asyncio.run(
    bare_rows_per_second(port, arguments.in_flight, min(arguments.rows, 30 * arguments.in_flight))
  )
  teacher = HttpTeacher("fixed", url=f"http://127.0.0.1:{port}/v1")
  request_config = RequestConfig(max_requests_in_flight=arguments.in_flight)
  with tempfile.TemporaryDirectory() as folder:
    output = pathlib.Path(folder) / "out.jsonl"
    report = annotate(
      rows, output, teacher, load_prompt("svamp"), AnnotationConfig(), request_config
    )
  server.terminate()
  bound = arguments.in_flight / arguments.latency_seconds
  # The first ten values are of the pass that counts the rows.
  print(
    json.dumps(
      {
        "rows": report["rows"],
        "answered": report["statuses"]["answered"],
        "rows_per_second": report["rows_per_second"],
        "bound_rows_per_second": bound,
        "ratio": round(report["rows_per_second"] / bound, 4),
        "ratio_of_a_bare_client": round(bare / bound, 4),
        "memory_mib_at_tenths": [round(mib, 1) for mib in memory[10:]],
        "memory_mib_at_end": round(resident_mib(), 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "waited_for_cpu_seconds": waited_for_cpu_seconds(),
        "user_cpu_seconds": round(resource.getrusage(resource.RUSAGE_SELF).ru_utime, 1),
      }
    )
  )


if __name__ == "__main__":
  main()
