"""Google's error bodies, for whatever a request of this API can end with."""

import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dss_jax.errors import UserError
from dss_jax.jobs.api_error import CODES, ApiError, invalid, not_found
from dss_jax.jobs.service import JobService
from dss_jax.serving.errors import Refused, google_error, refusal_of
from dss_jax.storage.sealed import SealedError

_DOMAIN = "dss-jax"
# google.rpc.ErrorInfo's reason, where Google's own differs from the status.
_REASONS = {
  "NOT_FOUND": "RESOURCE_NOT_FOUND",
  "PERMISSION_DENIED": "IAM_PERMISSION_DENIED",
  "UNAUTHENTICATED": "CREDENTIALS_MISSING",
  "RESOURCE_EXHAUSTED": "RATE_LIMIT_EXCEEDED",
}
_LOG = logging.getLogger("dss_jax.jobs")


def refused(error: Exception, service: JobService) -> Refused:
  """Returns what a client is told of an exception; where files are on a disk, it is not told."""
  if isinstance(error, HTTPException):
    return _of_route(error)
  if isinstance(error, SealedError):
    return ApiError("FAILED_PRECONDITION", without_places(str(error), service))
  if isinstance(error, UserError):
    return invalid(without_places(str(error), service))
  try:
    return refusal_of(error)
  except Exception:
    return ApiError("INTERNAL", "the server failed; its log says why")


def failure(error: Exception, service: JobService) -> ApiError:
  """Returns the same for what failed after its request was answered: it has a number of gRPC."""
  found = refused(error, service)
  if found.status == 500:
    _LOG.error("a request failed", exc_info=error)
  if isinstance(found, ApiError):
    return found
  kind = google_error(found)["error"]["status"]
  return ApiError(kind if kind in CODES else "INTERNAL", str(found))


def body(error: Refused) -> dict[str, Any]:
  """Returns the body of an error: google.rpc.Status with google.rpc.ErrorInfo."""
  content = google_error(error)
  if isinstance(error, ApiError):
    content["error"]["status"] = error.kind
  status = content["error"]["status"]
  content["error"]["details"] = [
    {
      "@type": "type.googleapis.com/google.rpc.ErrorInfo",
      "reason": _REASONS.get(status, status),
      "domain": _DOMAIN,
      "metadata": {} if error.parameter is None else {"field": error.parameter},
    }
  ]
  return content


def response(error: Refused) -> Response:
  """Returns the response of a request that is refused."""
  return JSONResponse(body(error), error.status, headers=error.headers)


def handlers(service: JobService) -> dict[Any, Any]:
  """Returns the exception handlers of an application."""

  async def answer(request: Request, error: Exception) -> Response:
    return response(refused(error, service))

  return dict.fromkeys((HTTPException, Refused, UserError, TimeoutError, Exception), answer)


def _of_route(error: HTTPException) -> Refused:
  """Returns the refusal of a path or a method that does not exist."""
  if error.status_code == 404:
    return not_found("this path")
  if error.status_code == 405:
    return Refused(405, "this path does not take that method", headers=error.headers)
  return Refused(error.status_code, error.detail, headers=error.headers)


def without_places(message: str, service: JobService) -> str:
  """Returns a message with names for the server's folders."""
  settings = service.settings
  places = {str(service.root): "ROOT"}
  places[str(service.private.memory)] = "MEMORY"
  places |= {bucket.path: f"gs://{name}" for name, bucket in settings.buckets.items()}
  if settings.registry is not None:
    places[settings.registry] = "REGISTRY"
  # The inner ones first.
  for folder in sorted(places, key=len, reverse=True):
    message = message.replace(folder, places[folder])
  return message
