"""The routes of tuningJobs."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dss_jax.jobs.api.filters import Field
from dss_jax.jobs.api.job_stream import watch
from dss_jax.jobs.api.paging import page
from dss_jax.jobs.api.requests import read_object
from dss_jax.jobs.bodies.job_json import tuning_json
from dss_jax.jobs.service import JobService
from dss_jax.jobs.store import Job

_KIND = "tuningJobs"
_FIELDS = {
  "state": Field("state"),
  "base_model": Field("baseModel"),
  "tuned_model_display_name": Field("tunedModelDisplayName"),
  "labels": Field("labels", "labels"),
  **{f"{name}_time": Field(f"{name}Time", "time") for name in ("create", "start", "update", "end")},
}


class TuningJobsApi:
  """The routes of tuningJobs."""

  def __init__(self, service: JobService):
    self._service = service

  def routes(self) -> list[Route]:
    """Returns the routes, below the version of the API."""
    parent = f"/projects/{{project}}/locations/{{location}}/{_KIND}"
    return [
      Route(parent, self._create, methods=["POST"]),
      Route(parent, self._list),
      Route(parent + "/{id}:cancel", self._cancel, methods=["POST"]),
      Route(parent + "/{id}:watch", self._watch),
      Route(parent + "/{id}", self._get),
    ]

  async def _create(self, request: Request) -> Response:
    body = await read_object(request)
    parts = request.path_params
    job = await run_in_threadpool(
      self._service.create,
      "tuningJobs",
      parts["project"],
      parts["location"],
      body,
      user=request.state.caller.name,
    )
    return JSONResponse(tuning_json(job))

  def _list(self, request: Request) -> Response:
    parts = request.path_params
    jobs = self._service.of_parent("tuningJobs", parts["project"], parts["location"])
    return JSONResponse(page(map(tuning_json, jobs), request.query_params, _FIELDS, key=_KIND))

  def _get(self, request: Request) -> Response:
    return JSONResponse(tuning_json(self._job(request)))

  def _cancel(self, request: Request) -> Response:
    self._service.cancel(self._job(request).name)
    return JSONResponse({})

  async def _watch(self, request: Request) -> Response:
    job = await run_in_threadpool(self._job, request)
    return watch(self._service, job, request.headers.get("last-event-id", ""))

  def _job(self, request: Request) -> Job:
    parts = request.path_params
    self._service.check_parent(parts["project"], parts["location"])
    return self._service.get(
      f"projects/{parts['project']}/locations/{parts['location']}/{_KIND}/{parts['id'][:128]}"
    )
