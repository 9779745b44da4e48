"""The routes of batch predictions."""

import contextlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dss_jax.jobs.api.filters import Field
from dss_jax.jobs.api.operations import Operations
from dss_jax.jobs.api.paging import page
from dss_jax.jobs.api.requests import read_object
from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.bodies.model_body import DisplayName, Sent
from dss_jax.jobs.bodies.pipeline_body import EncryptionSpec, Labels
from dss_jax.jobs.names import Name, check_id, new_id
from dss_jax.jobs.resources import Resources
from dss_jax.jobs.service import JobService
from dss_jax.jobs.store import now
from dss_jax.jobs.students.batch_prediction import ENDED, KIND, BatchPredictions, parameters_of
from dss_jax.jobs.students.student_pool import StudentPool
from dss_jax.serving.validation import validated

_FIELDS = {
  "name": Field("name"),
  "display_name": Field("displayName"),
  "model_display_name": Field("model"),
  "state": Field("state"),
  "labels": Field("labels", "labels"),
  "create_time": Field("createTime", "time"),
  "end_time": Field("endTime", "time"),
  "update_time": Field("updateTime", "time"),
}
_Uri = Annotated[str, pydantic.Field(min_length=1, max_length=1024)]


class _Source(Sent):
  uris: Annotated[list[_Uri], pydantic.Field(min_length=1, max_length=64)]


class _Input(Sent):
  instances_format: Literal["jsonl"] = "jsonl"
  gcs_source: _Source


class _Destination(Sent):
  output_uri_prefix: _Uri


class _Output(Sent):
  predictions_format: Literal["jsonl"] = "jsonl"
  gcs_destination: _Destination


class _Job(Sent):
  display_name: DisplayName = ""
  model: _Uri
  input_config: _Input
  output_config: _Output
  model_parameters: dict[str, Any] = pydantic.Field(default_factory=dict)
  labels: Labels = pydantic.Field(default_factory=dict)
  encryption_spec: EncryptionSpec = EncryptionSpec()


class BatchPredictionApi:
  """The routes, below the version of the API."""

  def __init__(
    self, service: JobService, resources: Resources, operations: Operations, pool: StudentPool
  ):
    self._service = service
    self._resources = resources
    self._operations = operations
    self._jobs = BatchPredictions(service, resources, pool)

  def routes(self) -> list[Route]:
    parent = "/projects/{project}/locations/{location}/" + KIND
    return [
      Route(parent, self._list),
      Route(parent, self._create, methods=["POST"]),
      Route(parent + "/{job}:cancel", self._cancel, methods=["POST"]),
      Route(parent + "/{job}", self._get),
      Route(parent + "/{job}", self._delete, methods=["DELETE"]),
    ]

  def running(self) -> contextlib.AbstractAsyncContextManager[None]:
    """Runs jobs within the context."""
    return self._jobs.running()

  async def _create(self, request: Request) -> Response:
    sent = validated(_Job, await read_object(request))
    job = sent.model_dump(by_alias=True)
    parts = request.path_params
    parameters_of(job)
    version = self._jobs.version_of(job, parts["project"])
    for uri in sent.input_config.gcs_source.uris:
      self._service.resolve(uri, "inputConfig.gcsSource.uris", parts["project"])
    self._service.resolve(
      sent.output_config.gcs_destination.output_uri_prefix,
      "outputConfig.gcsDestination.outputUriPrefix",
      parts["project"],
    )
    name = Name(parts["project"], parts["location"], KIND, new_id())
    if key := sent.encryption_spec.kms_key_name:
      found = self._service.private.keyring.new(key, name.project, name.id)
      job["wrappedKey"] = found.wrapped
    else:
      del job["encryptionSpec"]
    moment = now()
    job.update(
      modelVersionId=str(version.number),
      state="JOB_STATE_PENDING",
      createTime=moment,
      updateTime=moment,
    )
    created = self._resources.add(name, job)
    self._jobs.wake()
    return JSONResponse(_shown(created))

  async def _get(self, request: Request) -> Response:
    return JSONResponse(_shown(self._resources.get(_name(request))))

  async def _list(self, request: Request) -> Response:
    parts = request.path_params
    found = map(_shown, self._resources.list(KIND, parts["project"], parts["location"]))
    return JSONResponse(page(found, request.query_params, _FIELDS, key=KIND))

  async def _cancel(self, request: Request) -> Response:
    self._jobs.cancel(_name(request))
    return JSONResponse({})

  async def _delete(self, request: Request) -> Response:
    self._resources.delete(_name(request), _check_ended)
    return JSONResponse(self._operations.done(request, "DeleteOperationMetadata"))


def _check_ended(job: Mapping[str, Any]) -> None:
  if job["state"] not in ENDED:
    raise ApiError("FAILED_PRECONDITION", "the job has not ended; cancel it before you delete it")


def _shown(job: Mapping[str, Any]) -> dict[str, Any]:
  hidden: tuple[Any, ...] = ("", {}, [], None)
  return {key: value for key, value in job.items() if value not in hidden and key != "wrappedKey"}


def _name(request: Request) -> Name:
  parts = request.path_params
  return Name(parts["project"], parts["location"], KIND, check_id(parts["job"], "job"))
