"""What the routes read of a request: its JSON body, and the version of the API that it speaks."""

from typing import Any

import pydantic
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


def changed(request: Request, body: dict[str, Any], kind: type[pydantic.BaseModel]) -> list[str]:
  """Returns the names of the fields that a PATCH changes: its updateMask's, else those it has.

  Args:
    kind: the fields that can be changed.

  Raises ApiError for a field that cannot.
  """
  mask = request.query_params.get("updateMask", "")
  given = [each.strip() for each in mask.split(",") if each.strip()]
  by_alias = {field.alias or name: name for name, field in kind.model_fields.items()}
  if not given or given == ["*"]:
    return [name for alias, name in by_alias.items() if alias in body or name in body]
  # Clients of protocol buffers write snake_case.
  names = {**by_alias, **{name: name for name in kind.model_fields}}
  for each in given:
    if each not in names:
      raise invalid(
        f"updateMask: {each[:70]!r} cannot be changed; there are {', '.join(sorted(by_alias))}"
      )
  return list(dict.fromkeys(names[each] for each in given))
