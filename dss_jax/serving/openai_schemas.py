"""Requests of OpenAI's API: completions and chat completions.

Parameters and forms as in OpenAI's Python client (openai.types). What a student cannot do (tools,
images, penalties) is refused unless it has the value that changes nothing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import Field

from dss_jax.serving.errors import BadRequest
from dss_jax.serving.generation import MAX_CANDIDATES, Generation
from dss_jax.serving.validation import validated

Request = TypeVar("Request", bound="_Common")
_Texts = Annotated[list[str], Field(max_length=16)]
# Parameters that have no effect here, whatever their value.
_IGNORED = frozenset(
  ("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
   "verbosity", "parallel_tool_calls", "modalities", "reasoning_effort", "prompt_cache_retention")
)  # fmt: skip
# Parameters that a student does not have, and the value that asks for nothing.
_NEUTRAL: dict[str, Any] = {
  "frequency_penalty": 0,
  "presence_penalty": 0,
  # Not OpenAI's, but of vLLM, whose benchmark sends it.
  "repetition_penalty": 1.0,
  "logit_bias": {},
  "suffix": "",
  "echo": False,
  "tools": [],
  "functions": [],
  "tool_choice": "none",
  "function_call": "none",
  "response_format": {"type": "text"},
  "audio": None,
  "prediction": None,
  "web_search_options": None,
}


class _StreamOptions(pydantic.BaseModel):
  include_usage: bool = False


class _Common(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra="forbid", strict=True)

  model: str
  max_tokens: Annotated[int, Field(ge=1)] | None = None
  temperature: Annotated[float, Field(ge=0, le=2)] | None = None
  top_p: Annotated[float, Field(gt=0, le=1)] | None = None
  # Not OpenAI's, but of vLLM and llama.cpp.
  top_k: Annotated[int, Field(ge=-1)] | None = None
  n: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] | None = None
  stop: str | _Texts | None = None
  seed: int | None = None
  stream: bool | None = None
  stream_options: _StreamOptions | None = None
  # Not OpenAI's: the student's rationale, too.
  explain: bool = False

  def generation(self, prompts: tuple[str, ...], top_logs: int | None) -> Generation:
    """Returns the request in the form of both APIs.

    Args:
      top_logs: how many likely tokens are listed; None for no log-probabilities at all.
    """
    stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
    return Generation(
      prompts=prompts,
      explain=self.explain,
      max_tokens=self.max_tokens,
      # A student writes the most likely answer unless a client asks for another one.
      temperature=self.temperature or 0.0,
      top_k=self.top_k if self.top_k and self.top_k > 0 else None,
      top_p=1.0 if self.top_p is None else self.top_p,
      stop=tuple(filter(None, stop)),
      seed=None if self.seed is None else self.seed % 2**32,
      candidates=self.n or 1,
      log_probabilities=top_logs is not None,
      top_log_probabilities=top_logs or 0,
    )

  @property
  def includes_usage(self) -> bool:
    return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(_Common):
  """The body of POST /v1/completions."""

  prompt: str | Annotated[list[str], Field(min_length=1)]
  best_of: int | None = None
  logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

  def to_generation(self) -> Generation:
    if self.best_of not in (None, self.n or 1):
      raise BadRequest("best_of: a student gives all of its n answers", "best_of")
    prompts = (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt)
    return self.generation(prompts, self.logprobs)


class _TextPart(pydantic.BaseModel):
  type: Literal["text"]
  text: str


class _Message(pydantic.BaseModel):
  role: Literal["system", "developer", "user", "assistant", "tool", "function"]
  content: str | list[_TextPart] | None = None

  @property
  def text(self) -> str:
    if isinstance(self.content, list):
      return "".join(part.text for part in self.content)
    return self.content or ""


class ChatRequest(_Common):
  """The body of POST /v1/chat/completions."""

  messages: Annotated[list[_Message], Field(min_length=1, max_length=256)]
  max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
  logprobs: bool | None = None
  top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

  def to_generation(self) -> Generation:
    """Returns the request: a student answers the last message, which must be the user's."""
    if self.messages[-1].role != "user":
      raise BadRequest("the last message must have the role user", "messages")
    if self.max_completion_tokens is not None:
      self.max_tokens = self.max_completion_tokens
    if self.top_logprobs and not self.logprobs:
      raise BadRequest("top_logprobs: needs logprobs to be true", "top_logprobs")
    top_logs = (self.top_logprobs or 0) if self.logprobs else None
    return self.generation((self.messages[-1].text,), top_logs)


def parse(kind: type[Request], body: Any) -> Request:
  """Checks the body of a request; raises BadRequest with one sentence."""
  if not isinstance(body, Mapping):
    raise BadRequest("the body must be a JSON object")
  values = {name: value for name, value in body.items() if name not in _IGNORED}
  for name, neutral in _NEUTRAL.items():
    value = values.pop(name, None)
    if value is not None and value != neutral and value != "auto":
      raise BadRequest(f"{name}: a student does not take this parameter; leave it out", name)
  return validated(kind, values)
