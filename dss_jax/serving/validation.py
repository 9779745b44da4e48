"""Checks a request's values with pydantic, and says in one sentence what is wrong."""

from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from dss_jax.serving.errors import BadRequest

Model = TypeVar("Model", bound=pydantic.BaseModel)


def validated(kind: type[Model], values: Mapping[str, Any]) -> Model:
  """Checks values; raises BadRequest with a sentence about the first that is wrong."""
  try:
    return kind.model_validate(values)
  except pydantic.ValidationError as error:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
      names = ", ".join(sorted(kind.model_fields))
      raise BadRequest(f"{place}: no such parameter; there are {names}", place) from None
    raise BadRequest(f"{place}: {_plain(first['msg'])}", str(first["loc"][0])) from None


def _plain(message: str) -> str:
  message = message.removeprefix("Value error, ")
  return message[:1].lower() + message[1:200]
