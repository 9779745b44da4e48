"""The error that a request ends with, by Google's name of its kind (google.rpc.Code)."""

from collections.abc import Sequence

from dss_jax.serving.errors import Refused

# The number of gRPC and the status of HTTP.
CODES = {
  "CANCELLED": (1, 499),
  "INVALID_ARGUMENT": (3, 400),
  "DEADLINE_EXCEEDED": (4, 504),
  "NOT_FOUND": (5, 404),
  "ALREADY_EXISTS": (6, 409),
  "PERMISSION_DENIED": (7, 403),
  "RESOURCE_EXHAUSTED": (8, 429),
  "FAILED_PRECONDITION": (9, 400),
  "ABORTED": (10, 409),
  "OUT_OF_RANGE": (11, 400),
  "UNIMPLEMENTED": (12, 501),
  "INTERNAL": (13, 500),
  "UNAVAILABLE": (14, 503),
  "UNAUTHENTICATED": (16, 401),
}


class ApiError(Refused):
  """A request that is refused, with one sentence for the client.

  Attributes:
    kind: a key of CODES; google.rpc.Status calls it `status`.
    status: of HTTP.
    grpc_code: the number that a job's own error has.
    problems: all that is wrong, each a sentence that begins with the name of its field.
  """

  def __init__(self, kind: str, message: str, problems: Sequence[str] = ()):
    self.grpc_code, http_status = CODES[kind]
    super().__init__(http_status, message)
    self.kind = kind
    self.problems = tuple(problems) or (message,)


def invalid(message: str) -> ApiError:
  """Returns the error of a request with a wrong value."""
  return ApiError("INVALID_ARGUMENT", message)


def not_found(name: str) -> ApiError:
  """Returns the error of a resource that is not there, or that the client may not know of."""
  return ApiError("NOT_FOUND", f"{name}: does not exist here; list what does")
