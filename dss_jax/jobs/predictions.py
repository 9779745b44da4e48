"""Questions to a version of a model, in the forms of the hosted service."""

from starlette.requests import Request
from starlette.responses import Response

from dss_jax.jobs.api_error import not_found
from dss_jax.jobs.student_pool import StudentPool
from dss_jax.serving import vertex_api
from dss_jax.serving.service import Service
from dss_jax.serving.vertex_schemas import parse_count, parse_predict, parse_streaming
from dss_jax.student.registry import Version


class Predictions:
  """Asks the students of a pool."""

  def __init__(self, pool: StudentPool, service: Service):
    self._pool = pool
    self._service = service

  async def answer(
    self, request: Request, verb: str, project: str, version: Version, **identity: str
  ) -> Response:
    """Returns the response to predict, serverStreamingPredict or countTokens.

    Args:
      identity: which model answers: deployedModelId, model, modelDisplayName, modelVersionId.
    """
    if verb not in ("predict", "serverStreamingPredict", "countTokens"):
      raise not_found(f":{verb[:40]}")
    body = await self._service.read(request)
    if verb == "countTokens":
      prompts = parse_count(body)
      model, _ = self._service.models.get(await self._pool.ready(project, version))
      return vertex_api.count_tokens(model, prompts)
    parse = parse_predict if verb == "predict" else parse_streaming
    generation = parse(body)
    call = self._service.call(await self._pool.ready(project, version), generation)
    if verb == "predict":
      return await vertex_api.prediction(self._service, request, call, **identity)
    return vertex_api.stream(self._service, call)
