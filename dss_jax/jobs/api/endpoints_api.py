"""The routes of endpoints, and of the questions that they answer."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dss_jax.jobs.api.filters import Field
from dss_jax.jobs.api.operations import Operations
from dss_jax.jobs.api.paging import page
from dss_jax.jobs.api.requests import changed, read_object
from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.bodies.model_body import Description, DisplayName, Sent, etag
from dss_jax.jobs.bodies.pipeline_body import Labels
from dss_jax.jobs.google_errors import failure
from dss_jax.jobs.names import Name, check_id, new_id, parse
from dss_jax.jobs.service import JobService
from dss_jax.jobs.students.endpoints import Endpoints
from dss_jax.jobs.students.predictions import Predictions
from dss_jax.jobs.students.student_pool import StudentPool
from dss_jax.jobs.students.versions import find_version
from dss_jax.serving.validation import validated
from dss_jax.student.registry import Version

_KIND = "endpoints"
_FIELDS = {
  "endpoint": Field("id"),
  "name": Field("name"),
  "display_name": Field("displayName"),
  "labels": Field("labels", "labels"),
  "create_time": Field("createTime", "time"),
  "update_time": Field("updateTime", "time"),
}
_Share = Annotated[int, pydantic.Field(ge=0, le=100)]
_Split = Annotated[dict[str, _Share], pydantic.Field(max_length=64)]
# Of the proto's verbs, those that have no meaning for a student here.
_MISSING = ("mutateDeployedModel", "rawPredict", "streamRawPredict", "directPredict", "explain",
            "directRawPredict", "streamingPredict", "computeTokens")  # fmt: skip


class _Endpoint(Sent):
  display_name: DisplayName = ""
  description: Description = ""
  labels: Labels = pydantic.Field(default_factory=dict)


class _Patch(_Endpoint):
  traffic_split: _Split = pydantic.Field(default_factory=dict)


class _DeployedModel(Sent):
  id: str = ""
  model: str
  display_name: DisplayName = ""


class _Deploy(Sent):
  deployed_model: _DeployedModel
  traffic_split: _Split = pydantic.Field(default_factory=dict)


class _Undeploy(Sent):
  deployed_model_id: str
  traffic_split: _Split = pydantic.Field(default_factory=dict)


class EndpointsApi:
  """The routes, below the version of the API."""

  def __init__(
    self,
    service: JobService,
    endpoints: Endpoints,
    operations: Operations,
    pool: StudentPool,
    predictions: Predictions,
  ):
    self._service = service
    self._endpoints = endpoints
    self._operations = operations
    self._pool = pool
    self._predictions = predictions
    self._tasks: set[asyncio.Task[None]] = set()

  def routes(self) -> list[Route]:
    parent = "/projects/{project}/locations/{location}/endpoints"
    endpoint = parent + "/{endpoint}"
    return [
      Route(parent, self._list),
      Route(parent, self._create, methods=["POST"]),
      Route(endpoint + ":deployModel", self._deploy, methods=["POST"]),
      Route(endpoint + ":undeployModel", self._undeploy, methods=["POST"]),
      *(Route(f"{endpoint}:{verb}", _unimplemented, methods=["POST"]) for verb in _MISSING),
      Route(endpoint + ":{verb}", self._ask, methods=["POST"]),
      Route(endpoint, self._get),
      Route(endpoint, self._patch, methods=["PATCH"]),
      Route(endpoint, self._delete, methods=["DELETE"]),
    ]

  async def _list(self, request: Request) -> Response:
    parts = request.path_params
    found = self._endpoints.list(parts["project"], parts["location"])
    own = [{**_shown(each), "id": each["name"].rpartition("/")[2]} for each in found]
    content = page(own, request.query_params, _FIELDS, key=_KIND)
    for each in content.get(_KIND, []):
      del each["id"]
    return JSONResponse(content)

  async def _create(self, request: Request) -> Response:
    sent = validated(_Endpoint, await read_object(request))
    given = request.query_params.get("endpointId", "")
    own = check_id(given, "endpointId") if given else new_id()
    parts = request.path_params
    name = Name(parts["project"], parts["location"], _KIND, own)
    endpoint = self._endpoints.create(name, sent.model_dump(by_alias=True))
    operation = self._operations.done(
      request, "CreateEndpointOperationMetadata", "Endpoint", _shown(endpoint)
    )
    return JSONResponse(operation)

  async def _get(self, request: Request) -> Response:
    return JSONResponse(_shown(self._endpoints.get(_name(request))))

  async def _patch(self, request: Request) -> Response:
    body = await read_object(request)
    sent = validated(_Patch, body).model_dump()
    fields = changed(request, body, _Patch)
    values = {str(_Patch.model_fields[each].alias): sent[each] for each in fields}
    return JSONResponse(_shown(self._endpoints.change(_name(request), values)))

  async def _delete(self, request: Request) -> Response:
    self._endpoints.delete(_name(request))
    return JSONResponse(self._operations.done(request, "DeleteOperationMetadata"))

  async def _deploy(self, request: Request) -> Response:
    """Answers at once; the operation is done when the student can be asked."""
    name = _name(request)
    self._endpoints.get(name)
    sent = validated(_Deploy, await read_object(request))
    model = parse(sent.deployed_model.model, "models", name.project, "deployedModel.model")
    version = find_version(self._service.registry(name.project), model.id, "deployedModel.model")
    if sent.deployed_model.id:
      check_id(sent.deployed_model.id, "deployedModel.id")
    operation = self._operations.begin(request, "DeployModelOperationMetadata")
    task = asyncio.create_task(self._load_and_deploy(operation, name, version, model, sent))
    self._tasks.add(task)
    task.add_done_callback(self._tasks.discard)
    return JSONResponse(operation)

  async def _load_and_deploy(
    self, operation: Mapping[str, Any], name: Name, version: Version, model: Name, sent: _Deploy
  ) -> None:
    try:
      await self._pool.ready(name.project, version)
      deployed = self._endpoints.deploy(
        name,
        version,
        model=str(model._replace(id=version.name)),
        deployed_id=sent.deployed_model.id or None,
        display_name=sent.deployed_model.display_name or None,
        traffic_split=sent.traffic_split,
      )
    # Whatever happens, a client waits for the operation.
    except Exception as error:
      self._operations.fail(operation, failure(error, self._service))
    else:
      response = {"deployedModel": deployed}
      self._operations.finish(operation, "DeployModelResponse", response)

  async def _undeploy(self, request: Request) -> Response:
    name = _name(request)
    sent = validated(_Undeploy, await read_object(request))
    gone = self._endpoints.undeploy(name, sent.deployed_model_id, sent.traffic_split)
    model, number = gone["model"].rpartition("/")[2], gone["modelVersionId"]
    if (model, int(number)) not in self._endpoints.deployments(name.project):
      self._pool.drop(name.project, f"{model}@{number}")
    return JSONResponse(
      self._operations.done(request, "UndeployModelOperationMetadata", "UndeployModelResponse")
    )

  async def _ask(self, request: Request) -> Response:
    """Runs a verb of predictions.py."""
    name = _name(request)
    deployed, version = self._endpoints.chosen(name)
    return await self._predictions.answer(
      request,
      request.path_params["verb"],
      name.project,
      version,
      deployedModelId=deployed["id"],
      model=deployed["model"],
      modelDisplayName=deployed["displayName"],
      modelVersionId=deployed["modelVersionId"],
    )


def _name(request: Request) -> Name:
  parts = request.path_params
  return Name(parts["project"], parts["location"], _KIND, check_id(parts["endpoint"], "endpoint"))


def _shown(endpoint: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an endpoint as clients see it: without what is empty, with an etag."""
  content = {key: value for key, value in endpoint.items() if value not in ("", [], {}, None)}
  return {**content, "etag": etag(content)}


async def _unimplemented(request: Request) -> Response:
  raise ApiError("UNIMPLEMENTED", "endpoints here do not do this; see docs/jobs_api.md")
