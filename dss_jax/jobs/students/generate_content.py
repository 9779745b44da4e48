"""generateContent and streamGenerateContent, which google-genai sends to a tuned model's endpoint.

Of a conversation the last message is the input: a student was trained without an instruction and
has no memory. Its rationale is a thought.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dss_jax.jobs import google_errors
from dss_jax.jobs.api_error import invalid
from dss_jax.jobs.bodies.model_body import Sent
from dss_jax.serving.errors import refusal_of
from dss_jax.serving.generation import ANSWER_MARK, MAX_CANDIDATES, Answer, Generation
from dss_jax.serving.service import Call, Service
from dss_jax.serving.validation import validated

_FINISH = {"stop": "STOP", "length": "MAX_TOKENS"}
# What would need more than a student, and is refused unless it asks for nothing.
_REFUSED = ("tools", "cachedContent", "toolConfig")


class _Part(Sent):
  text: str


class _Content(Sent):
  parts: Annotated[list[_Part], Field(min_length=1, max_length=64)]


class _Thinking(Sent):
  include_thoughts: bool = False


class _Config(Sent):
  temperature: Annotated[float, Field(ge=0, le=2)] | None = None
  max_output_tokens: Annotated[int, Field(ge=1)] | None = None
  top_k: Annotated[float, Field(ge=1)] | None = None
  top_p: Annotated[float, Field(gt=0, le=1)] | None = None
  stop_sequences: Annotated[list[str], Field(max_length=16)] = Field(default_factory=list)
  candidate_count: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] | None = None
  seed: int | None = None
  thinking_config: _Thinking | None = None


class _Request(Sent):
  contents: Annotated[list[_Content], Field(min_length=1, max_length=256)]
  generation_config: _Config | None = None


def parse_contents(body: dict[str, Any]) -> str:
  """Returns the input of a body with contents; raises Refused."""
  last = validated(_Request, body).contents[-1]
  return "".join(part.text for part in last.parts)


def parse_generate(body: dict[str, Any]) -> Generation:
  """Checks the body of generateContent; raises Refused with one sentence."""
  for name in _REFUSED:
    if body.get(name):
      raise invalid(f"{name}: a student does not take this; leave it out")
  config = validated(_Request, body).generation_config or _Config()
  return Generation(
    prompts=(parse_contents(body),),
    explain=config.thinking_config is not None and config.thinking_config.include_thoughts,
    max_tokens=config.max_output_tokens,
    temperature=config.temperature or 0.0,
    top_k=None if config.top_k is None else int(config.top_k),
    top_p=1.0 if config.top_p is None else config.top_p,
    stop=tuple(filter(None, config.stop_sequences)),
    seed=None if config.seed is None else config.seed % 2**32,
    candidates=config.candidate_count or 1,
  )


async def content(service: Service, request: Request, call: Call, model: str) -> Response:
  """Returns the response of generateContent, once the answers are there."""
  (answers,) = await service.answers(request, call)
  candidates = [
    _candidate(number, _parts(answer), answer.finish) for number, answer in enumerate(answers)
  ]
  return JSONResponse(
    {"candidates": candidates, "usageMetadata": _usage(call), "modelVersion": model},
    headers=call.headers,
  )


def stream(service: Service, request: Request, call: Call, model: str) -> Response:
  """Returns the response of streamGenerateContent: events with alt=sse, else an array."""
  if request.query_params.get("alt") == "sse":
    return service.stream(call, _events(call, model), "text/event-stream")
  return service.stream(call, _array(call, model), "application/json")


async def _messages(call: Call, model: str) -> AsyncIterator[dict[str, Any]]:
  # Closed when the client leaves, so that the answers are not written to their ends.
  async with contextlib.aclosing(call.texts()) as parts:
    try:
      async for part in parts:
        text: dict[str, Any] = {"text": part.text}
        if part.kind == "rationale":
          text = {"text": part.text.removesuffix(ANSWER_MARK), "thought": True}
        candidate = _candidate(part.candidate, [text], part.finish)
        yield {"candidates": [candidate], "usageMetadata": _usage(call), "modelVersion": model}
    except Exception as error:
      yield google_errors.body(refusal_of(error))


async def _events(call: Call, model: str) -> AsyncIterator[bytes]:
  async for message in _messages(call, model):
    yield b"data: " + json.dumps(message).encode() + b"\n\n"


async def _array(call: Call, model: str) -> AsyncIterator[bytes]:
  start = b"["
  async for message in _messages(call, model):
    yield start + json.dumps(message).encode()
    start = b",\n"
  yield b"[]" if start == b"[" else b"]"


def _parts(answer: Answer) -> list[dict[str, Any]]:
  thought = [] if answer.rationale is None else [{"text": answer.rationale, "thought": True}]
  return [*thought, {"text": answer.label}]


def _candidate(number: int, parts: list[dict[str, Any]], finish: str | None) -> dict[str, Any]:
  values: dict[str, Any] = {"index": number, "content": {"role": "model", "parts": parts}}
  return values if finish is None else {**values, "finishReason": _FINISH[finish]}


def _usage(call: Call) -> dict[str, int]:
  return {
    "promptTokenCount": call.prompt_tokens,
    "candidatesTokenCount": call.output_tokens,
    "totalTokenCount": call.prompt_tokens + call.output_tokens,
  }
