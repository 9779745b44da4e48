"""A teacher's server on loopback that answers, or fails in every way that servers do."""

import asyncio
import collections
import contextlib
import json
import re
import threading
import time

import pytest

from dss_jax.teacher.http_client import HttpTeacher, Patience
from dss_jax.teacher.prompts import load_prompt

QUICK = Patience(timeout_seconds=3, attempts=4, base_wait_seconds=0.01, longest_wait_seconds=0.05)


def completion(text, **usage):
  """The JSON of a chat answer and of a continuation in one."""
  return {
    "model": "served",
    "choices": [{"message": {"content": text}, "text": text, "finish_reason": "stop"}],
    "usage": usage or {"prompt_tokens": 100, "completion_tokens": 20},
  }


def good_answer(row):
  return f"There are {row} and 1 more. {row} + 1 is {row + 1}. The answer is ({row} + 1)."


class FaultServer:
  """Answers questions about "row N"; `fault(row, attempt)` names what goes wrong, or None.

  `requests` lists (row, time) as they come, `completed` counts whole good answers by row.
  """

  def __init__(self):
    self.requests = []
    self.completed = collections.Counter()
    self.headers = []
    self.bodies = []
    self.in_flight = self.most_in_flight = 0
    self.fault = lambda row, attempt: None
    self.answer = good_answer
    self.latency = lambda row: 0.0
    self._attempts = collections.Counter()
    self._connections = 0
    self._loop = asyncio.new_event_loop()
    started = threading.Event()
    self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
    self._thread.start()
    started.wait()

  @property
  def url(self):
    return f"http://127.0.0.1:{self.port}/v1"

  def wait_until_idle(self):
    """Returns once all clients are gone, and with them the requests on their way."""
    end = time.monotonic() + 60
    while self._connections:
      assert time.monotonic() < end
      time.sleep(0.005)

  def close(self):
    if self._loop.is_closed():
      return
    self._loop.call_soon_threadsafe(self._stop.set)
    self._thread.join()

  def _serve(self, started):
    async def main():
      self._stop = asyncio.Event()
      server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
      self.port = server.sockets[0].getsockname()[1]
      started.set()
      await self._stop.wait()
      server.close()
      for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()

    self._loop.run_until_complete(main())
    self._loop.run_until_complete(asyncio.sleep(0.01))
    self._loop.close()

  async def _connection(self, reader, writer):
    self._connections += 1
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
      while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(re.search(r"content-length: (\d+)", head, re.I)[1])
        body = json.loads(await reader.readexactly(length))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
          is_open = await self._respond(head, body, writer)
        finally:
          self.in_flight -= 1
        if not is_open:
          break
    self._connections -= 1
    writer.close()

  async def _respond(self, head, body, writer):
    """Answers one request; False where the connection is to be closed."""
    prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    row = int(re.findall(r"row (\d+)", prompt)[-1])
    self.requests.append((row, time.monotonic()))
    self.headers.append(head)
    self.bodies.append(body)
    attempt = self._attempts[row]
    self._attempts[row] += 1
    await asyncio.sleep(self.latency(row))
    fault = self.fault(row, attempt)
    good = json.dumps(completion(self.answer(row))).encode()
    if fault is None:
      await _send(writer, 200, good)
      self.completed[row] += 1
      return True
    if fault == "hang":
      await asyncio.sleep(60)
    if fault == "hang up":
      return False
    if fault == "reset":
      writer.write(_head(200, len(good)) + good[: len(good) // 2])
      await writer.drain()
      writer.transport.abort()
      return False
    if fault == "trickle":
      writer.write(_head(200, len(good)))
      for byte in good:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.1)
    if fault == "endless":
      writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
      while not writer.transport.is_closing():
        writer.write(b"[" * 2**16)
        await writer.drain()
      return False
    status, content, headers = fault
    await _send(writer, status, content, headers)
    return True


async def _send(writer, status, content, headers=()):
  writer.write(_head(status, len(content), headers) + content)
  await writer.drain()


def _head(status, length, headers=()):
  lines = [f"HTTP/1.1 {status} X", f"content-length: {length}", *headers]
  if not any(line.startswith("content-type") for line in headers):
    lines.append("content-type: application/json")
  return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.fixture
def server():
  server = FaultServer()
  yield server
  server.close()


@pytest.fixture
def quick_teacher(server, monkeypatch):
  """A function that opens a teacher at the server, with little patience."""
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)

  def open_teacher(patience=QUICK, **keywords):
    return HttpTeacher("served", url=server.url, patience=patience, **keywords)

  return open_teacher


@pytest.fixture
def svamp_prompt():
  return load_prompt("svamp")


@pytest.fixture
def numbered():
  """A function that gives n rows of which the server knows the answers."""

  def rows(count):
    return [{"input_text": f"row {row}: there are {row} and 1 more, how many?"} for row in
            range(count)]  # fmt: skip

  return rows
