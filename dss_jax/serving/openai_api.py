"""OpenAI's API: /v1/models, /v1/completions and /v1/chat/completions.

Forms as in OpenAI's Python client (openai.types); a stream is one of server-sent events that ends
with `data: [DONE]`.
"""

import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dss_jax.serving.errors import openai_error, refusal_of
from dss_jax.serving.generation import Answer, Generation, Part
from dss_jax.serving.models import ServedModel
from dss_jax.serving.openai_schemas import ChatRequest, CompletionRequest, parse
from dss_jax.serving.service import Call, Service
from dss_jax.student.chosen_tokens import ChosenToken, ChosenTokens


class OpenAIApi:
  """The routes of OpenAI's API over a service."""

  def __init__(self, service: Service):
    self._service = service

  def routes(self) -> list[Route]:
    return [
      Route("/v1/models", self.list_models),
      Route("/v1/models/{name:path}", self.show_model),
      Route("/v1/completions", self.complete, methods=["POST"]),
      Route("/v1/chat/completions", self.chat, methods=["POST"]),
    ]

  async def list_models(self, request: Request) -> Response:
    listed = [_model(name, model) for model in self._service.models for name in model.names]
    return JSONResponse({"object": "list", "data": listed})

  async def show_model(self, request: Request) -> Response:
    name = request.path_params["name"]
    model, _ = self._service.models.get(name)
    return JSONResponse(_model(name, model))

  async def complete(self, request: Request) -> Response:
    body = parse(CompletionRequest, await self._service.read(request))
    form = _Completion(body.model, bool(body.stream))
    return await self._answer(request, body.to_generation(), form, body)

  async def chat(self, request: Request) -> Response:
    body = parse(ChatRequest, await self._service.read(request))
    form = _Chat(body.model, bool(body.stream))
    return await self._answer(request, body.to_generation(), form, body)

  async def _answer(
    self, request: Request, generation: Generation, form: "_Form", body: Any
  ) -> Response:
    call = self._service.call(body.model, generation)
    if body.stream:
      events = _events(call, form, body.includes_usage)
      return self._service.stream(call, events, "text/event-stream")
    answers = await self._service.answers(request, call)
    choices = [
      form.choice(index, answer, call)
      for index, answer in enumerate(answer for of_prompt in answers for answer in of_prompt)
    ]
    content = {**form.head(), "choices": choices, "usage": _usage(call)}
    return JSONResponse(content, headers=call.headers)


class _Form:
  """How an answer looks; completions and chat differ in it."""

  kind = ""
  stream_kind = ""

  def __init__(self, model: str, is_stream: bool):
    self._model = model
    self._id = f"{'chatcmpl' if 'chat' in self.kind else 'cmpl'}-{uuid.uuid4().hex}"
    self._is_stream = is_stream
    self._created = int(time.time())
    self._written: dict[int, ChosenTokens] = {}

  def head(self) -> dict[str, Any]:
    kind = self.stream_kind if self._is_stream else self.kind
    return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

  def choice(self, index: int, answer: Answer, call: Call) -> dict[str, Any]:
    raise NotImplementedError

  def first_delta(self, index: int) -> dict[str, Any] | None:
    """Returns the choice that begins an answer in a stream, if there is one."""
    return None

  def delta(self, index: int, part: Part, call: Call) -> dict[str, Any]:
    raise NotImplementedError

  def logs(self, index: int, written: Answer | Part, call: Call) -> dict[str, Any] | None:
    """Returns the log-probabilities of an answer's next label tokens, if they were asked for."""
    if not call.generation.log_probabilities:
      return None
    tokens = self._written.setdefault(index, ChosenTokens(call.model.student.texts_after))
    return self.logs_of(tokens.add(written.ids, written.log_probabilities, written.alternatives))

  def logs_of(self, tokens: list[ChosenToken]) -> dict[str, Any]:
    raise NotImplementedError


class _Completion(_Form):
  kind = stream_kind = "text_completion"

  def choice(self, index: int, answer: Answer, call: Call) -> dict[str, Any]:
    choice = {"index": index, "text": answer.text, "logprobs": self.logs(index, answer, call)}
    return {**choice, "finish_reason": answer.finish, **_rationale(answer)}

  def delta(self, index: int, part: Part, call: Call) -> dict[str, Any]:
    logs = self.logs(index, part, call) if part.kind == "label" else None
    return {"index": index, "text": part.text, "logprobs": logs, "finish_reason": part.finish}

  def logs_of(self, tokens: list[ChosenToken]) -> dict[str, Any]:
    # The chosen token is always listed, as one more if need be.
    top = [{**token.likeliest(), token.text: token.log_probability} for token in tokens]
    return {
      "tokens": [token.text for token in tokens],
      "token_logprobs": [token.log_probability for token in tokens],
      "top_logprobs": top,
      "text_offset": [token.offset for token in tokens],
    }


class _Chat(_Form):
  kind, stream_kind = "chat.completion", "chat.completion.chunk"

  def choice(self, index: int, answer: Answer, call: Call) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text, "refusal": None, **_rationale(answer)}
    logs = self.logs(index, answer, call)
    return {"index": index, "message": message, "logprobs": logs, "finish_reason": answer.finish}

  def first_delta(self, index: int) -> dict[str, Any] | None:
    delta = {"role": "assistant", "content": ""}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

  def delta(self, index: int, part: Part, call: Call) -> dict[str, Any]:
    logs = self.logs(index, part, call) if part.kind == "label" else None
    delta = {"content": part.text}
    return {"index": index, "delta": delta, "logprobs": logs, "finish_reason": part.finish}

  def logs_of(self, tokens: list[ChosenToken]) -> dict[str, Any]:
    def listed(text: str, log_probability: float) -> dict[str, Any]:
      return {"token": text, "logprob": log_probability, "bytes": list(text.encode())}

    content = [
      {
        **listed(token.text, token.log_probability),
        "top_logprobs": [listed(*one) for one in token.alternatives],
      }
      for token in tokens
    ]
    return {"content": content, "refusal": None}


async def _events(call: Call, form: _Form, includes_usage: bool) -> AsyncIterator[bytes]:
  """Yields the events of a stream; a failure is the last one."""
  begun: set[int] = set()
  # Closed when the client leaves, so that the answers are not written to their ends.
  async with contextlib.aclosing(call.texts()) as parts:
    try:
      async for part in parts:
        index = part.prompt * call.generation.candidates + part.candidate
        first = form.first_delta(index) if index not in begun else None
        begun.add(index)
        for choice in (first, form.delta(index, part, call)):
          if choice is not None:
            yield _event({**form.head(), "choices": [choice]})
    except Exception as error:
      yield _event(openai_error(refusal_of(error)))
      return
  if includes_usage:
    yield _event({**form.head(), "choices": [], "usage": _usage(call)})
  yield b"data: [DONE]\n\n"


def _event(value: Any) -> bytes:
  return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _rationale(answer: Answer) -> dict[str, Any]:
  if answer.rationale is None:
    return {}
  return {"label": answer.label, "rationale": answer.rationale}


def _usage(call: Call) -> dict[str, int]:
  total = call.prompt_tokens + call.output_tokens
  return {
    "prompt_tokens": call.prompt_tokens,
    "completion_tokens": call.output_tokens,
    "total_tokens": total,
  }


def _model(name: str, model: ServedModel) -> dict[str, Any]:
  return {"id": name, "object": "model", "created": model.created, "owned_by": "dss_jax"}
