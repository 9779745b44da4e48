"""What both APIs share: a call of a student, within time, with what is measured of it."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from dss_jax.serving.exchange import read_json, while_connected
from dss_jax.serving.generation import Answer, Generation, Part, Writing, check
from dss_jax.serving.metrics import Metrics
from dss_jax.serving.models import Models, ServedModel

DRIFT_HEADER = "x-dss-drift"


class Call:
  """One request to a student, in its queue from the start.

  Attributes:
    headers: of the response.
    prompt_tokens, output_tokens: counted so far.
  """

  def __init__(
    self, model: ServedModel, generation: Generation, metrics: Metrics, timeout_seconds: float
  ):
    """Puts the request into the queue; raises Refused."""
    self.model = model
    self.generation = generation
    self.output_tokens = 0
    self._timeout_seconds = timeout_seconds
    self._metrics = metrics
    self._writing = Writing(model.batcher, generation, model.student.max_output_tokens)
    self.prompt_tokens = sum(map(model.student.count_tokens, generation.prompts))
    reasons = {one for text in generation.prompts for one in model.student.drift_of(text)}
    for reason in reasons:
      metrics.drift.labels(model.name, reason).inc()
    self.headers = {DRIFT_HEADER: ", ".join(sorted(reasons))} if reasons else {}

  async def texts(self) -> AsyncGenerator[Part, None]:
    """Yields the parts of all answers; raises TimeoutError."""
    async with asyncio.timeout(self._timeout_seconds):
      async for part in self._writing.texts():
        self.output_tokens += len(part.ids)
        yield part

  async def answers(self) -> list[list[Answer]]:
    """Returns all answers; raises TimeoutError."""
    async with asyncio.timeout(self._timeout_seconds):
      answers = await self._writing.answers()
    self.output_tokens = sum(one.output_tokens for of_prompt in answers for one in of_prompt)
    return answers

  def end(self) -> None:
    """Ends answers that are not complete, and counts tokens."""
    self._writing.cancel()
    tokens = self._metrics.tokens
    tokens.labels(self.model.name, "input").inc(self.prompt_tokens)
    tokens.labels(self.model.name, "output").inc(self.output_tokens)


class Service:
  """The students and the limits of a server."""

  def __init__(self, models: Models, metrics: Metrics, *, timeout_seconds: float):
    self.models = models
    self.metrics = metrics
    self._timeout_seconds = timeout_seconds

  async def read(self, request: Request) -> Any:
    """Returns the JSON body of a request."""
    async with asyncio.timeout(self._timeout_seconds):
      return await read_json(request)

  def call(self, name: str, generation: Generation) -> Call:
    """Begins a call; raises Refused."""
    model, explains = self.models.get(name)
    if explains:
      generation = dataclasses.replace(generation, explain=True)
    check(generation, model.student.kinds)
    return Call(model, generation, self.metrics, self._timeout_seconds)

  async def answers(self, request: Request, call: Call) -> list[list[Answer]]:
    """Returns the answers, unless the client leaves before (ClientGone)."""
    try:
      return await while_connected(request, call.answers())
    finally:
      call.end()

  def stream(self, call: Call, content: AsyncIterator[bytes], media_type: str) -> Response:
    """Returns a response whose content is sent as it is written."""
    headers = {**call.headers, "cache-control": "no-store", "x-accel-buffering": "no"}
    return _Stream(call, content, media_type=media_type, headers=headers)


class _Stream(StreamingResponse):
  """A stream that ends its call also when the client leaves before."""

  def __init__(self, call: Call, content: AsyncIterator[bytes], **attributes: Any):
    super().__init__(content, **attributes)
    self._call = call

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    try:
      await super().__call__(scope, receive, send)
    finally:
      self._call.end()
