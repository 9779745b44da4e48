"""Requests of the hosted service's API: predict, serverStreamingPredict and countTokens.

Names and forms as in google.cloud.aiplatform's PredictionService and vertexai.language_models.
Proto-JSON gives whole numbers as numbers or texts, and floats without a point as whole numbers.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import AliasChoices, Field

from dss_jax.serving.errors import BadRequest
from dss_jax.serving.generation import MAX_CANDIDATES, MAX_PROMPTS, Generation
from dss_jax.serving.validation import validated

_INT = Annotated[int, Field(ge=1)]
# Parameters that a student does not have, and the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "presencePenalty": (0,),
  "frequencyPenalty": (0,),
  "logitBias": ({},),
  "groundingConfig": ({}, None),
  "echo": (False,),
}
_MAX_DEPTH = 8


class _Parameters(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra="forbid")

  temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
  maxOutputTokens: _INT | None = Field(
    None, validation_alias=AliasChoices("maxOutputTokens", "maxDecodeSteps")
  )
  topK: _INT | None = None
  topP: Annotated[float, Field(gt=0, le=1)] = 1.0
  stopSequences: Annotated[list[str], Field(max_length=16)] = []
  candidateCount: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = 1
  seed: int | None = None
  logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
  # Not the service's: the student's rationale, too.
  explain: bool = False


class _Message(pydantic.BaseModel):
  author: str = "user"
  content: str


class _Instance(pydantic.BaseModel):
  """An input: a text, or a conversation.

  Of a conversation the last message is the input: a student was trained without an instruction and
  has no memory, so `context` and `examples` have no effect.
  """

  # The service's batch files have `prompt`, and its documentation `content`.
  content: str | None = Field(None, validation_alias=AliasChoices("content", "prompt"))
  messages: Annotated[list[_Message], Field(min_length=1, max_length=4096)] | None = None

  @pydantic.model_validator(mode="after")
  def _check_form(self) -> "_Instance":
    if (self.content is None) == (self.messages is None):
      raise ValueError("give one of content and messages")
    return self

  @property
  def prompt(self) -> str:
    if self.messages is not None:
      return self.messages[-1].content
    assert self.content is not None
    return self.content


class _Predict(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra="ignore")

  instances: Annotated[list[_Instance], Field(min_length=1, max_length=MAX_PROMPTS)]
  parameters: dict[str, Any] | None = None


class _Count(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra="ignore")

  instances: Annotated[list[_Instance], Field(min_length=1, max_length=MAX_PROMPTS)]


def parse_predict(body: Any) -> Generation:
  """Checks the body of a predict call; raises BadRequest with one sentence."""
  predict = validated(_Predict, _object(body))
  return _generation(predict.instances, predict.parameters or {})


def parse_streaming(body: Any) -> Generation:
  """Checks the body of serverStreamingPredict, whose values are tensors."""
  values = _object(body)
  inputs = values.get("inputs")
  if not isinstance(inputs, list) or len(inputs) != 1:
    raise BadRequest("inputs: one tensor with the prompt's content is needed", "inputs")
  parameters = values.get("parameters")
  decoded = {} if parameters is None else _value_of(parameters, _MAX_DEPTH)
  instance = validated(_Instance, _object(_value_of(inputs[0], _MAX_DEPTH)))
  return _generation([instance], _object({} if decoded is None else decoded))


def parse_count(body: Any) -> list[str]:
  """Checks the body of countTokens; returns the prompts."""
  return [instance.prompt for instance in validated(_Count, _object(body)).instances]


def _generation(instances: list[_Instance], parameters: Mapping[str, Any]) -> Generation:
  given = {name: value for name, value in parameters.items() if value is not None}
  for name, neutral in _NEUTRAL.items():
    value = given.pop(name, neutral[0])
    if value not in neutral:
      raise BadRequest(f"{name}: a student does not take this parameter; leave it out", name)
  values = validated(_Parameters, given)
  forms = {instance.messages is not None for instance in instances}
  if len(forms) > 1:
    raise BadRequest("instances: some have content and some messages; send two requests")
  return Generation(
    prompts=tuple(instance.prompt for instance in instances),
    is_chat=forms == {True},
    explain=values.explain,
    max_tokens=values.maxOutputTokens,
    temperature=values.temperature,
    top_k=values.topK,
    top_p=values.topP,
    stop=tuple(filter(None, values.stopSequences)),
    seed=None if values.seed is None else values.seed % 2**32,
    candidates=values.candidateCount,
    log_probabilities=values.logprobs is not None,
    top_log_probabilities=values.logprobs or 0,
  )


def _object(body: Any) -> Mapping[str, Any]:
  if not isinstance(body, Mapping):
    raise BadRequest("the body must be a JSON object")
  return body


def _value_of(tensor: Any, depth: int) -> Any:
  """Returns the value of a Tensor message: {"stringVal": ["x"]} is "x"."""
  if not depth or not isinstance(tensor, Mapping):
    raise BadRequest('a tensor must be an object such as {"stringVal": ["text"]}')
  for name, value in tensor.items():
    if name == "structVal" and isinstance(value, Mapping):
      return {key: _value_of(inner, depth - 1) for key, inner in value.items()}
    if name == "listVal" and isinstance(value, list):
      return [_value_of(inner, depth - 1) for inner in value]
    if name.endswith("Val") and isinstance(value, list):
      values = [_number(one) if name in ("int64Val", "uint64Val") else one for one in value]
      return values[0] if len(values) == 1 else values
  return None


def _number(value: Any) -> Any:
  is_text = isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 20
  return int(value) if is_text else value


def tensor_of(value: Any) -> dict[str, Any]:
  """Returns a value as a Tensor message."""
  if isinstance(value, Mapping):
    return {"structVal": {key: tensor_of(inner) for key, inner in value.items()}}
  if isinstance(value, list):
    return {"listVal": [tensor_of(inner) for inner in value]}
  if isinstance(value, bool):
    return {"boolVal": [value]}
  if isinstance(value, int):
    return {"intVal": [value]}
  if isinstance(value, float):
    return {"floatVal": [value]}
  return {"stringVal": [value]}
