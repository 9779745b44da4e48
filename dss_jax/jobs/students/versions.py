"""The versions of models that requests name."""

from dss_jax.errors import UserError
from dss_jax.jobs.api_error import not_found
from dss_jax.jobs.names import parse_model
from dss_jax.student.registry import Registry, Version


def find_version(registry: Registry, given: str, field: str = "model") -> Version:
  """Returns the version of NAME, NAME@VERSION or NAME@ALIAS.

  Raises ApiError NOT_FOUND, with nothing of other models' names.
  """
  name, version = parse_model(given, field)
  if name not in registry.names():
    raise not_found(f"models/{name}")
  try:
    return registry.version(given if version else name)
  except UserError:
    raise not_found(f"models/{given}") from None
