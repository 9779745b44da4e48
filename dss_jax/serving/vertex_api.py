"""The hosted service's API: predict, serverStreamingPredict and countTokens.

Both of endpoints and of publishers' models: the last part of a path is the name of a student.
Forms as in google.cloud.aiplatform's PredictionService.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dss_jax.serving.errors import Refused, google_error, refusal_of
from dss_jax.serving.generation import Answer, Generation, Part
from dss_jax.serving.models import ServedModel
from dss_jax.serving.service import Call, Service
from dss_jax.serving.vertex_schemas import parse_count, parse_predict, parse_streaming, tensor_of
from dss_jax.student.chosen_tokens import ChosenTokens, service_form

_INSTANCE_SCHEMA = "gs://google-cloud-aiplatform/schema/predict/instance/text_generation_1.0.0.yaml"
# Of answers in conversations, as Google's clients name the model.
_AUTHOR = "bot"
# A student judges nothing; clients read these keys.
_SAFETY = {"categories": [], "scores": [], "blocked": False}


class VertexApi:
  """The routes of the hosted service's API over a service."""

  def __init__(self, service: Service):
    self._service = service

  def routes(self) -> list[Route]:
    place = "/projects/{project}/locations/{location}"
    return [
      route
      for version in ("v1", "v1beta1")
      for route in (
        Route(f"/{version}{place}/endpoints/{{target:path}}", self.act, methods=["POST"]),
        Route(
          f"/{version}{place}/publishers/{{publisher}}/models/{{target:path}}",
          self.act,
          methods=["POST"],
        ),
        Route(f"/{version}/publishers/{{publisher}}/models/{{target:path}}", self.show),
      )
    ]

  async def show(self, request: Request) -> Response:
    """Returns a publisher's model, which clients ask for before they predict."""
    name = request.path_params["target"]
    model, _ = self._service.models.get(name)
    publisher = request.path_params["publisher"]
    template = "projects/{user-project}/locations/{location}/publishers/" + publisher
    return JSONResponse(
      {
        "name": f"publishers/{publisher}/models/{name}",
        "versionId": model.version or "1",
        "publisherModelTemplate": f"{template}/models/{name}",
        "predictSchemata": {"instanceSchemaUri": _INSTANCE_SCHEMA},
      }
    )

  async def act(self, request: Request) -> Response:
    """Runs the verb after the last colon of the path."""
    name, _, verb = request.path_params["target"].rpartition(":")
    actions = {
      "predict": self.predict,
      "serverStreamingPredict": self.stream,
      "countTokens": self.count,
    }
    if verb not in actions or not name:
      verbs = ", ".join(f":{one}" for one in actions)
      raise Refused(404, f"the path must end in the name of a student and one of {verbs}")
    return await actions[verb](request, name)

  async def predict(self, request: Request, name: str) -> Response:
    call = self._service.call(name, parse_predict(await self._service.read(request)))
    model = call.model
    return await prediction(
      self._service,
      request,
      call,
      deployedModelId=model.name,
      model=model.name,
      modelDisplayName=model.name,
      modelVersionId=model.version or "1",
    )

  async def stream(self, request: Request, name: str) -> Response:
    call = self._service.call(name, parse_streaming(await self._service.read(request)))
    return stream(self._service, call)

  async def count(self, request: Request, name: str) -> Response:
    model, _ = self._service.models.get(name)
    return count_tokens(model, parse_count(await self._service.read(request)))


async def prediction(service: Service, request: Request, call: Call, **identity: str) -> Response:
  """Returns the response of predict, once the answers are there.

  Args:
    identity: which model answers: deployedModelId, model, modelDisplayName, modelVersionId.
  """
  answers = await service.answers(request, call)
  texts = [answer.text for of_prompt in answers for answer in of_prompt]
  counts = {
    "inputTokenCount": _count(call.prompt_tokens, call.generation.prompts),
    "outputTokenCount": _count(call.output_tokens, texts),
  }
  content = {
    "predictions": _predictions(answers, call.generation, call.model),
    "metadata": {"tokenMetadata": counts},
    **identity,
  }
  return JSONResponse(content, headers=call.headers)


def stream(service: Service, call: Call) -> Response:
  """Returns the response of serverStreamingPredict."""
  return service.stream(call, _array(call), "application/json")


def count_tokens(model: ServedModel, prompts: Sequence[str]) -> Response:
  """Returns the response of countTokens."""
  return JSONResponse(_count(sum(map(model.student.count_tokens, prompts)), prompts))


def _predictions(
  answers: Sequence[Sequence[Answer]], generation: Generation, model: ServedModel
) -> list[dict[str, Any]]:
  """Returns a prediction for each answer; of conversations one for each, with all its answers."""
  found = [[prediction_of(each, generation, model) for each in of_prompt] for of_prompt in answers]
  if generation.is_chat:
    return [_chat(of_prompt) for of_prompt in found]
  return [each for of_prompt in found for each in of_prompt]


def _chat(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns predictions as the service's chat models have them: side by side, by their kind."""
  beside = ("safetyAttributes", "citationMetadata")
  candidates = [
    {"author": _AUTHOR, **{key: value for key, value in each.items() if key not in beside}}
    for each in predictions
  ]
  lists = {key: [each[key] for each in predictions if key in each] for key in beside}
  return {"candidates": candidates, **{key: values for key, values in lists.items() if values}}


def prediction_of(answer: Answer, generation: Generation, model: ServedModel) -> dict[str, Any]:
  """Returns an answer as predict and batch predictions have it."""
  prediction: dict[str, Any] = {
    "content": answer.label,
    "safetyAttributes": _SAFETY,
    "citationMetadata": {"citations": []},
  }
  if answer.rationale is not None:
    prediction["rationale"] = answer.rationale
  if generation.log_probabilities:
    tokens = ChosenTokens(model.student.texts_after)
    prediction["logprobs"] = service_form(
      tokens.add(answer.ids, answer.log_probabilities, answer.alternatives)
    )
  return prediction


async def _array(call: Call) -> AsyncIterator[bytes]:
  """Yields an array of messages; clients take nothing before its bracket or after it."""
  start = b"["
  # Closed when the client leaves, so that the answers are not written to their ends.
  async with contextlib.aclosing(call.texts()) as parts:
    try:
      async for part in parts:
        message = _streamed(part)
        if call.generation.is_chat:
          message = _chat([message])
        yield start + json.dumps({"outputs": [tensor_of(message)]}).encode()
        start = b"\n,\n"
    except Exception as error:
      yield start + json.dumps(google_error(refusal_of(error))).encode()
  yield b"]"


def _streamed(part: Part) -> dict[str, Any]:
  return {"content": part.text, "safetyAttributes": {"blocked": False}}


def _count(tokens: int, texts: Any) -> dict[str, int]:
  return {"totalTokens": tokens, "totalBillableCharacters": sum(len(text) for text in texts)}
