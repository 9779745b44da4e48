"""Why a request is not answered, in the form of the API that the client speaks."""

import http
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

# google.rpc.Code by HTTP status.
_GOOGLE_STATUS = {
  400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
  405: "UNIMPLEMENTED", 409: "ALREADY_EXISTS", 413: "INVALID_ARGUMENT", 415: "INVALID_ARGUMENT",
  429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 500: "INTERNAL", 501: "UNIMPLEMENTED",
  503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
_OPENAI_TYPE = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refused(Exception):
  """A request that is not answered.

  Attributes:
    status: of HTTP.
    parameter: whose fault it is, if it is one's.
    headers: of the response.
  """

  def __init__(
    self,
    status: int,
    message: str,
    *,
    parameter: str | None = None,
    headers: Mapping[str, str] | None = None,
  ):
    super().__init__(message)
    self.status = status
    self.parameter = parameter
    self.headers = headers


class BadRequest(Refused):
  """A request that cannot be answered as it is."""

  def __init__(self, message: str, parameter: str | None = None):
    super().__init__(400, message, parameter=parameter)


class QueueFull(Refused):
  """So many questions wait that another one would wait too long."""

  def __init__(self, retry_after_seconds: int):
    super().__init__(
      429,
      f"too many requests wait; try again in {retry_after_seconds} s",
      headers={"retry-after": str(retry_after_seconds)},
    )


class ClientGone(Refused):
  """The client has closed the connection; nobody reads the response."""

  def __init__(self) -> None:
    super().__init__(499, "the client closed the connection")


def refusal_of(error: Exception) -> Refused:
  """Returns what a client is told of an exception; raises one that is a fault of the program."""
  if isinstance(error, Refused):
    return error
  if isinstance(error, TimeoutError):
    return Refused(504, "the answer was not complete in time; ask for fewer tokens, or try again")
  raise error


def openai_error(refused: Refused) -> dict[str, Any]:
  """Returns the body of OpenAI's API."""
  kind = "invalid_request_error" if refused.status < 500 else "server_error"
  return {
    "error": {
      "message": str(refused),
      "type": _OPENAI_TYPE.get(refused.status, kind),
      "param": refused.parameter,
      "code": "model_not_found" if refused.parameter == "model" else None,
    }
  }


def google_error(refused: Refused) -> dict[str, Any]:
  """Returns the body of Google's APIs (google.rpc.Status)."""
  status = _GOOGLE_STATUS.get(refused.status, "UNKNOWN")
  return {"error": {"code": refused.status, "message": str(refused), "status": status}}


def response(refused: Refused, path: str) -> Response:
  """Returns the response to a request to a path."""
  is_google = "/projects/" in path or "/publishers/" in path
  body = google_error(refused) if is_google else openai_error(refused)
  return JSONResponse(body, refused.status, headers=refused.headers)


def of_status(status: int) -> Refused:
  """Returns the refusal of a path or a method that does not exist."""
  return Refused(status, http.HTTPStatus(status).phrase.lower())
