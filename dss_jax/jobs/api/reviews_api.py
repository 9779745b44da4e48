"""The routes of a job's rationales: listRationales, editRationale and approve."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dss_jax.jobs.api.requests import read_object
from dss_jax.jobs.api.reviews import Reviews, SentEdit
from dss_jax.jobs.bodies.job_json import job_json
from dss_jax.jobs.bodies.pipeline_body import read_body
from dss_jax.jobs.service import JobService
from dss_jax.jobs.store import Kind


class ReviewsApi:
  """The routes, below the version of the API, of jobs of both kinds."""

  def __init__(self, service: JobService):
    self._service = service
    self._reviews = Reviews(service)

  def routes(self) -> list[Route]:
    return [
      route
      for kind in ("pipelineJobs", "tuningJobs")
      for route in _Routes(self._service, self._reviews, kind).routes()
    ]


class _Routes:
  def __init__(self, service: JobService, reviews: Reviews, kind: Kind):
    self._service = service
    self._reviews = reviews
    self._kind = kind

  def routes(self) -> list[Route]:
    job = f"/projects/{{project}}/locations/{{location}}/{self._kind}/{{id}}"
    return [
      Route(job + ":listRationales", self._list),
      Route(job + ":editRationale", self._edit, methods=["POST"]),
      Route(job + ":approve", self._approve, methods=["POST"]),
    ]

  def _list(self, request: Request) -> Response:
    job = self._service.get(self._name(request))
    return JSONResponse(self._reviews.page(job, request.query_params))

  async def _edit(self, request: Request) -> Response:
    sent = read_body(SentEdit, await read_object(request), "edit")
    user = request.state.caller.name
    edited = await run_in_threadpool(self._reviews.edit, self._name(request), sent, user)
    return JSONResponse(edited)

  async def _approve(self, request: Request) -> Response:
    await read_object(request)
    user = request.state.caller.name
    job = await run_in_threadpool(self._reviews.approve, self._name(request), user)
    return JSONResponse(job_json(job, self._service.store.tasks(job.name)))

  def _name(self, request: Request) -> str:
    parts = request.path_params
    self._service.check_parent(parts["project"], parts["location"])
    return (
      f"projects/{parts['project']}/locations/{parts['location']}/{self._kind}/{parts['id'][:128]}"
    )
