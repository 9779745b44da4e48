"""The routes of publishers' models: the names of the hosted service's own, retired models.

Clients ask for one before they tune or predict. The operator's settings say which students and
teachers the names mean, and which registered student answers for one.
"""

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dss_jax.jobs.api_error import invalid, not_found
from dss_jax.jobs.bodies.model_body import schema_of
from dss_jax.jobs.names import published
from dss_jax.jobs.service import JobService
from dss_jax.jobs.students.predictions import Predictions
from dss_jax.jobs.students.published import answering, is_same

_MODEL = "publishers/google/models/"
# What students of the command line began as: the label of their models, see model_body.
_T5 = re.compile(r"(flan-|um|m|by)?t5-[a-z0-9-]{1,60}")


class PublishersApi:
  """The routes, below the version of the API."""

  def __init__(self, service: JobService, predictions: Predictions):
    self._service = service
    self._predictions = predictions

  def routes(self) -> list[Route]:
    model = "/" + _MODEL + "{model}"
    return [
      Route(model, self._get),
      Route(f"/projects/{{project}}/locations/{{location}}{model}:{{verb}}", self._ask,
            methods=["POST"]),
    ]  # fmt: skip

  async def _get(self, request: Request) -> Response:
    return JSONResponse(publisher_model(self._known(request)))

  async def _ask(self, request: Request) -> Response:
    """Runs predict, serverStreamingPredict or countTokens, by the student that answers for it."""
    name, project = self._known(request), request.path_params["project"]
    version = answering(self._service, project, name)
    return await self._predictions.answer(
      request,
      request.path_params["verb"],
      project,
      version,
      deployedModelId=version.name,
      model=f"{_MODEL}{name}",
      modelDisplayName=name,
      modelVersionId=str(version.number),
    )

  def _known(self, request: Request) -> str:
    """Returns the id of the path's model; raises ApiError NOT_FOUND if it means nothing here."""
    name = published(_MODEL + request.path_params["model"])
    if name is None:
      raise invalid("model: must be an id such as text-bison@002")
    settings = self._service.settings
    known = {*settings.student_references, *settings.teachers, *settings.publisher_models}
    # Without a version, the newest one is meant.
    same = [each for each in known if is_same(each, name) or each.partition("@")[0] == name]
    if not same and not _T5.fullmatch(name.replace("@", "-")):
      raise not_found(f"{_MODEL}{name}")
    return max(same, default=name)


def publisher_model(name: str) -> dict[str, Any]:
  """Returns a publisher's model as clients read it."""
  template = "projects/{user-project}/locations/{location}/" + _MODEL + name
  base, _, version = name.partition("@")
  return {
    # The name of all versions: the client knows by it which models can be tuned.
    "name": _MODEL + base,
    "versionId": version or "default",
    "publisherModelTemplate": template,
    "predictSchemata": {"instanceSchemaUri": schema_of(name)},
  }
