"""What the routes read of a request: its JSON body, and the version of the API that it speaks."""

from typing import Any

from starlette.requests import Request

from dss_jax.jobs.api_error import invalid
from dss_jax.serving.exchange import read_json


async def read_object(request: Request) -> dict[str, Any]:
  """Reads the body as a JSON object; {} if there is none.

  Raises:
    Refused: it is too large, of another type, or no object.
  """
  headers = request.headers
  if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
    return {}
  body = await read_json(request)
  if not isinstance(body, dict):
    raise invalid("the body must be a JSON object")
  return body


def api_version(request: Request) -> str:
  """Returns "v1" or "v1beta1"; "v1" for paths of neither."""
  return "v1beta1" if request.url.path.startswith("/v1beta1/") else "v1"
