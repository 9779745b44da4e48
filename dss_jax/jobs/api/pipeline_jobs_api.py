"""The routes of pipelineJobs."""

from collections.abc import Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dss_jax.jobs.api.filters import Field
from dss_jax.jobs.api.job_stream import watch
from dss_jax.jobs.api.operations import Operations
from dss_jax.jobs.api.paging import page
from dss_jax.jobs.api.requests import read_object
from dss_jax.jobs.api_error import invalid
from dss_jax.jobs.bodies.job_json import pipeline_json
from dss_jax.jobs.service import JobService
from dss_jax.jobs.store import Job

_KIND = "pipelineJobs"
_MAX_BATCH = 32
_USER = "pipelineJobUserId"
_TIMES = {
  f"{name}_time": Field(f"{name}Time", "time") for name in ("create", "start", "update", "end")
}
_FIELDS = {
  "pipeline_name": Field("pipelineSpec.pipelineInfo.name"),
  "state": Field("state"),
  "display_name": Field("displayName"),
  "template_uri": Field("templateUri"),
  "template_metadata.version": Field("templateMetadata.version"),
  "pipeline_job_user_id": Field(_USER),
  "labels": Field("labels", "labels"),
  **_TIMES,
}


class PipelineJobsApi:
  """The routes of pipelineJobs."""

  def __init__(self, service: JobService, operations: Operations):
    self._service = service
    self._operations = operations

  def routes(self) -> list[Route]:
    """Returns the routes, below the version of the API."""
    parent = f"/projects/{{project}}/locations/{{location}}/{_KIND}"
    return [
      Route(parent, self._create, methods=["POST"]),
      Route(parent, self._list),
      Route(parent + ":batchCancel", self._batch_cancel, methods=["POST"]),
      Route(parent + ":batchDelete", self._batch_delete, methods=["POST"]),
      Route(parent + "/{id}:cancel", self._cancel, methods=["POST"]),
      Route(parent + "/{id}:watch", self._watch),
      Route(parent + "/{id}", self._get),
      Route(parent + "/{id}", self._delete, methods=["DELETE"]),
    ]

  async def _create(self, request: Request) -> Response:
    body = await read_object(request)
    parts, query = request.path_params, request.query_params
    job = await run_in_threadpool(
      self._service.create,
      "pipelineJobs",
      parts["project"],
      parts["location"],
      body,
      job_id=query.get("pipelineJobId") or query.get("pipeline_job_id"),
      user=request.state.caller.name,
    )
    return JSONResponse(pipeline_json(job, self._service.store.tasks(job.name)))

  def _list(self, request: Request) -> Response:
    parts = request.path_params
    jobs = self._service.of_parent("pipelineJobs", parts["project"], parts["location"])
    # A filter may ask who created a job, which the job itself does not say.
    listed = [{**pipeline_json(job), _USER: job.user} for job in jobs]
    found = page(listed, request.query_params, _FIELDS, key=_KIND)
    for each in found.get(_KIND, []):
      del each[_USER]
    if mask := request.query_params.get("readMask"):
      found[_KIND] = [masked(each, mask) for each in found.get(_KIND, [])]
    return JSONResponse(found)

  def _get(self, request: Request) -> Response:
    job = self._job(request)
    return JSONResponse(pipeline_json(job, self._service.store.tasks(job.name)))

  def _cancel(self, request: Request) -> Response:
    self._service.cancel(self._job(request).name)
    return JSONResponse({})

  def _delete(self, request: Request) -> Response:
    self._service.delete([self._job(request).name])
    return JSONResponse(self._operations.done(request, "DeleteOperationMetadata"))

  async def _watch(self, request: Request) -> Response:
    job = await run_in_threadpool(self._job, request)
    return watch(self._service, job, request.headers.get("last-event-id", ""))

  async def _batch_cancel(self, request: Request) -> Response:
    names = await self._names(request)

    def cancel() -> dict[str, Any]:
      # All are looked up before the first one is cancelled.
      for name in names:
        self._service.get(name)
      jobs = [pipeline_json(self._service.cancel(name)) for name in names]
      return self._operations.done(
        request,
        "BatchCancelPipelineJobsOperationMetadata",
        "BatchCancelPipelineJobsResponse",
        {"pipelineJobs": jobs},
      )

    return JSONResponse(await run_in_threadpool(cancel))

  async def _batch_delete(self, request: Request) -> Response:
    names = await self._names(request)

    def delete() -> dict[str, Any]:
      jobs = [pipeline_json(self._service.get(name)) for name in names]
      self._service.delete(names)
      return self._operations.done(
        request,
        "DeleteOperationMetadata",
        "BatchDeletePipelineJobsResponse",
        {"pipelineJobs": jobs},
      )

    return JSONResponse(await run_in_threadpool(delete))

  async def _names(self, request: Request) -> list[str]:
    """Returns the names of a batch, all of the request's project and location."""
    parts = request.path_params
    self._service.check_parent(parts["project"], parts["location"])
    body: Mapping[str, Any] = await read_object(request)
    names = body.get("names")
    prefix = f"projects/{parts['project']}/locations/{parts['location']}/{_KIND}/"
    if not isinstance(names, list) or not 1 <= len(names) <= _MAX_BATCH:
      raise invalid(f"names: must be a list of 1 to {_MAX_BATCH} names of jobs")
    if not all(isinstance(name, str) and name.startswith(prefix) for name in names):
      raise invalid(f"names: each must begin with {prefix}, as the path of the request does")
    if len(set(names)) < len(names):
      raise invalid("names: has a name twice")
    return names

  def _job(self, request: Request) -> Job:
    parts = request.path_params
    self._service.check_parent(parts["project"], parts["location"])
    return self._service.get(
      f"projects/{parts['project']}/locations/{parts['location']}/{_KIND}/{parts['id'][:128]}"
    )


def masked(resource: Mapping[str, Any], mask: str) -> dict[str, Any]:
  """Returns the fields of a resource that a readMask names; of a path, its first part counts."""
  wanted = {part.strip().split(".")[0].replace("_", "").lower() for part in mask.split(",")}
  if "*" in wanted:
    return dict(resource)
  return {name: value for name, value in resource.items() if name.lower() in wanted}
