"""The application: who may use it, the routes of both versions of the API, and what is logged."""

import contextlib
import functools
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router

from dss_jax.jobs import google_errors
from dss_jax.jobs.api.access import AUDIT_FILE, Access, AuditLog, Caller, check_role
from dss_jax.jobs.api.batch_prediction_api import BatchPredictionApi
from dss_jax.jobs.api.endpoints_api import EndpointsApi
from dss_jax.jobs.api.model_copies_api import ModelCopiesApi
from dss_jax.jobs.api.models_api import ModelsApi
from dss_jax.jobs.api.operations import Operations
from dss_jax.jobs.api.pipeline_jobs_api import PipelineJobsApi
from dss_jax.jobs.api.publishers_api import PublishersApi
from dss_jax.jobs.api.reviews_api import ReviewsApi
from dss_jax.jobs.api.sending import Sending
from dss_jax.jobs.api.tuning_jobs_api import TuningJobsApi
from dss_jax.jobs.api_error import ApiError, not_found
from dss_jax.jobs.resources import Resources
from dss_jax.jobs.service import JobService
from dss_jax.jobs.students.endpoints import Endpoints
from dss_jax.jobs.students.predictions import Predictions
from dss_jax.jobs.students.student_pool import Load, StudentPool, load_student
from dss_jax.serving.metrics import Metrics
from dss_jax.serving.service import Service

_API = re.compile(r"/(v1|v1beta1|ui)(/|$)")
_PARENT = re.compile(
  r"/(?:v1|v1beta1|ui)/projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)/."
)
_PUBLISHERS = re.compile(r"/(?:v1|v1beta1)/publishers/")
_HEADERS = {
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "x-frame-options": "DENY",
  "cache-control": "no-store",
  "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


def make_app(
  service: JobService,
  access: Access,
  *,
  load: Load | None = None,
  routes: Sequence[BaseRoute] = (),
  timeout_seconds: float = 60.0,
) -> Starlette:
  """Returns the application.

  Args:
    load: loads a student that is asked; by default with all devices of this process.
    routes: others, beside the API's; they check themselves who may use them. The state of their
      requests has the server's `endpoints`, `pool` and `predictions`.
    timeout_seconds: of one answer.
  """
  pool = StudentPool(
    load or functools.partial(load_student, service.private),
    max_students=service.settings.loaded_students,
    check=service.private.check_student,
  )
  resources = Resources(service.root)
  operations = Operations(resources)
  endpoints = Endpoints(resources, service.registry)
  asking = Service(pool.models, Metrics(), timeout_seconds=timeout_seconds)
  predictions = Predictions(pool, asking)
  batches = BatchPredictionApi(service, resources, operations, pool)
  api = [
    *operations.routes(),
    *ReviewsApi(service).routes(),
    *PipelineJobsApi(service, operations).routes(),
    *TuningJobsApi(service).routes(),
    *ModelCopiesApi(service, operations).routes(),
    *ModelsApi(service, endpoints, operations).routes(),
    *EndpointsApi(service, endpoints, operations, pool, predictions).routes(),
    *PublishersApi(service, predictions).routes(),
    *batches.routes(),
  ]

  async def healthz(request: Request) -> Response:
    return PlainTextResponse("ok\n")

  @contextlib.asynccontextmanager
  async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    operations.tidy()
    endpoints.reconcile()
    async with batches.running():
      # For the other routes: what the API's use.
      yield {"endpoints": endpoints, "pool": pool, "predictions": predictions}
    pool.models.close()

  app = Starlette(
    routes=[
      Route("/healthz", healthz),
      Mount("/v1", app=_router(api)),
      Mount("/v1beta1", app=_router(api)),
      # Google's own clients of version 1 ask for operations there.
      Mount("/ui", app=_router(operations.routes())),
      *routes,
    ],
    exception_handlers=google_errors.handlers(service),
    lifespan=lifespan,
  )
  app.router.redirect_slashes = False
  app.add_middleware(_Gate, service=service, access=access, log=AuditLog(service.root / AUDIT_FILE))
  return app


def _router(routes: Sequence[BaseRoute]) -> Router:
  # A path with another end is another resource, not one to be sent on to.
  return Router(routes, redirect_slashes=False)


class _Gate:
  """Lets requests to the API through that their caller may send, and notes each of them."""

  def __init__(self, app: Any, service: JobService, access: Access, log: AuditLog):
    self._app = app
    self._service = service
    self._access = access
    self._log = log

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    sending = Sending(send, _HEADERS)
    if not _API.match(scope["path"]):
      await self._app(scope, receive, sending)
      return
    request = Request(scope)
    caller: Caller | None = None
    try:
      try:
        caller = self._access.caller(
          request.headers.get("authorization"), request.headers.get("host", "")
        )
        self._check(request, caller)
      except Exception as error:
        refused = google_errors.refused(error, self._service)
        await google_errors.response(refused)(scope, receive, sending)
        return
      request.state.caller = caller
      await self._app(scope, receive, sending)
    finally:
      name = "-" if caller is None else caller.name
      self._log.note(name, request.method, scope["path"], sending.status)

  def _check(self, request: Request, caller: Caller) -> None:
    """Raises Refused unless the caller may send this request."""
    origin = request.headers.get("origin")
    if origin is not None and origin.rpartition("://")[2] != request.headers.get("host"):
      # A page of another site in a browser of this machine, which needs no token.
      raise ApiError("PERMISSION_DENIED", "pages of another site may not use this server")
    path, method = request.scope["path"], request.method
    parent = _PARENT.match(path)
    if parent is None:
      if method == "GET" and _PUBLISHERS.match(path):
        return
      raise not_found("this path")
    # First, so that a caller of one project does not learn which others there are.
    check_role(caller, parent["project"], method, path)
    self._service.check_parent(parent["project"], parent["location"], any_location=method == "GET")
