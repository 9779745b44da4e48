"""The ASGI application: access, errors, health and metrics around the two APIs."""

import contextlib
import re
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import prometheus_client
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from dss_jax.serving import errors
from dss_jax.serving.access import refusal
from dss_jax.serving.errors import Refused
from dss_jax.serving.metrics import Metrics
from dss_jax.serving.models import Models
from dss_jax.serving.openai_api import OpenAIApi
from dss_jax.serving.service import Service
from dss_jax.serving.vertex_api import VertexApi

# What a load balancer may ask without a token.
_OPEN_PATHS = ("/healthz", "/readyz")
_CALLS = re.compile(
  r"(?:/|:)(completions|models|predict|serverStreamingPredict|countTokens|metrics|healthz|readyz)"
  r"(?:/[^/:]+)?$"
)


def make_app(
  models: Models,
  *,
  tokens: Sequence[str] = (),
  timeout_seconds: float = 60.0,
  metrics: Metrics | None = None,
) -> Starlette:
  """Returns the application; it is ready when the students are there.

  Args:
    tokens: bearer tokens, one of which each request needs; () lets clients of this machine in.
    timeout_seconds: of one answer.
  """
  metrics = metrics or Metrics()
  service = Service(models, metrics, timeout_seconds=timeout_seconds)

  async def healthz(request: Request) -> Response:
    return PlainTextResponse("ok\n")

  async def readyz(request: Request) -> Response:
    is_ready = app.state.is_ready
    return PlainTextResponse("ready\n" if is_ready else "not ready\n", 200 if is_ready else 503)

  async def show_metrics(request: Request) -> Response:
    for model in models:
      metrics.waiting.labels(model.name).set(model.batcher.waiting)
      metrics.running.labels(model.name).set(model.batcher.running)
    content = prometheus_client.generate_latest(metrics.registry)
    return Response(content, media_type=prometheus_client.CONTENT_TYPE_LATEST)

  @contextlib.asynccontextmanager
  async def lifespan(app: Starlette) -> AsyncIterator[None]:
    yield
    app.state.is_ready = False
    models.close()

  app = Starlette(
    routes=[
      Route("/healthz", healthz),
      Route("/readyz", readyz),
      Route("/metrics", show_metrics),
      *OpenAIApi(service).routes(),
      *VertexApi(service).routes(),
    ],
    exception_handlers={
      HTTPException: _no_route,
      Refused: _refused,
      TimeoutError: _refused,
      Exception: _fault,
    },
    lifespan=lifespan,
  )
  app.state.is_ready = True
  app.add_middleware(_Gate, tokens=tuple(tokens), metrics=metrics)
  return app


async def _no_route(request: Request, error: Exception) -> Response:
  assert isinstance(error, HTTPException)
  return errors.response(errors.of_status(error.status_code), request.url.path)


async def _refused(request: Request, error: Exception) -> Response:
  return errors.response(errors.refusal_of(error), request.url.path)


async def _fault(request: Request, error: Exception) -> Response:
  """Answers a fault of the program, which Starlette then logs."""
  return errors.response(Refused(500, "the server failed; its log says why"), request.url.path)


class _Gate:
  """Lets requests through that may use the server, answers failures, and measures."""

  def __init__(self, app: Any, tokens: Sequence[str], metrics: Metrics):
    self._app = app
    self._tokens = tokens
    self._metrics = metrics

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    request = Request(scope)
    started = time.monotonic()
    status = 500

    async def note_status(message: Any) -> None:
      nonlocal status
      if message["type"] == "http.response.start":
        status = message["status"]
      await send(message)

    refused = None
    if request.url.path not in _OPEN_PATHS:
      headers = request.headers
      refused = refusal(headers.get("authorization"), headers.get("host", ""), self._tokens)
    try:
      if refused is not None:
        await errors.response(refused, scope["path"])(scope, receive, note_status)
        return
      await self._app(scope, receive, note_status)
    finally:
      found = _CALLS.search(scope["path"])
      call = found[1] if found else "other"
      self._metrics.requests.labels(call, str(status)).inc()
      self._metrics.seconds.labels(call).observe(time.monotonic() - started)
