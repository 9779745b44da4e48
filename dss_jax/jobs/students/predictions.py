"""Questions to a version of a model, in the forms of the hosted service."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from dss_jax.jobs.api_error import invalid, not_found
from dss_jax.jobs.students import generate_content
from dss_jax.jobs.students.generate_content import parse_contents, parse_generate
from dss_jax.jobs.students.student_pool import StudentPool
from dss_jax.serving import vertex_api
from dss_jax.serving.generation import Answer
from dss_jax.serving.service import Call, Service
from dss_jax.serving.vertex_schemas import parse_count, parse_predict, parse_streaming
from dss_jax.student.registry import Version

# What reads the body of each verb.
_VERBS: dict[str, Callable[[dict[str, Any]], Any]] = {
  "predict": parse_predict,
  "serverStreamingPredict": parse_streaming,
  "generateContent": parse_generate,
  "streamGenerateContent": parse_generate,
  "countTokens": parse_count,
}


class Predictions:
  """Asks the students of a pool."""

  def __init__(self, pool: StudentPool, service: Service):
    self._pool = pool
    self._service = service

  async def answer(
    self, request: Request, verb: str, project: str, version: Version, **identity: str
  ) -> Response:
    """Returns the response to a verb of _VERBS.

    Args:
      identity: which model answers: deployedModelId, model, modelDisplayName, modelVersionId.
    """
    if verb not in _VERBS:
      raise not_found(f":{verb[:40]}")
    body = await self._read(request)
    if verb == "countTokens":
      prompts = [parse_contents(body)] if "contents" in body else parse_count(body)
      model, _ = self._service.models.get(await self._pool.ready(project, version))
      return vertex_api.count_tokens(model, prompts)
    generation = _VERBS[verb](body)
    call = self._service.call(await self._pool.ready(project, version), generation)
    if verb == "predict":
      return await vertex_api.prediction(self._service, request, call, **identity)
    if verb == "serverStreamingPredict":
      return vertex_api.stream(self._service, call)
    model_name = f"{version.name}@{version.number}"
    if verb == "generateContent":
      return await generate_content.content(self._service, request, call, model_name)
    return generate_content.stream(self._service, request, call, model_name)

  async def predict(
    self, request: Request, project: str, version: Version, body: dict[str, Any]
  ) -> tuple[Call, list[Answer]]:
    """Returns the call and the answers to one prompt, for a body of predict.

    Raises Refused, UserError or TimeoutError.
    """
    key = await self._pool.ready(project, version)
    call = self._service.call(key, parse_predict(body))
    (answers,) = await self._service.answers(request, call)
    return call, answers

  async def _read(self, request: Request) -> dict[str, Any]:
    body = await self._service.read(request)
    if not isinstance(body, dict):
      raise invalid("the body must be a JSON object")
    return body
