"""Names of resources as requests write them, checked before anything is looked up."""

import re
import secrets
from typing import NamedTuple

from dss_jax.jobs.api_error import ApiError, invalid

_NAME = re.compile(
  r"projects/(?P<project>[a-z0-9:.-]{1,63})/locations/(?P<location>[a-z0-9-]{1,40})"
  r"/(?P<kind>[a-zA-Z]{1,30})/(?P<id>[^/]+)"
)
# The service's own ids are numbers; a client may choose others.
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,61}[a-z0-9]|[a-z0-9]")
# The registry's names, with a version or an alias.
_MODEL = re.compile(
  r"(?P<model>[A-Za-z0-9][A-Za-z0-9_.-]{0,127})(@(?P<version>[A-Za-z0-9-]{1,128}))?"
)
_PUBLISHED = re.compile(
  r"(projects/[^/]+/locations/[^/]+/)?publishers/google/models/(?P<id>[A-Za-z0-9@][A-Za-z0-9@_.-]{0,127})"
)


class Name(NamedTuple):
  """The name of a resource, taken apart."""

  project: str
  location: str
  kind: str
  id: str

  def __str__(self) -> str:
    return f"projects/{self.project}/locations/{self.location}/{self.kind}/{self.id}"


def new_id() -> str:
  """Returns an id as the service makes them: a number of 19 digits."""
  return str(10**18 + secrets.randbelow(9 * 10**18))


def check_id(given: str, field: str) -> str:
  """Returns an id that a client chose; raises ApiError unless it is allowed."""
  if not _ID.fullmatch(given):
    raise invalid(
      f"{field}: {given[:70]!r} is not allowed; use up to 63 small letters, digits and '-', and"
      " begin and end with a letter or a digit"
    )
  return given


def parse(given: object, kind: str, project: str, field: str) -> Name:
  """Takes the name of a resource in a request apart.

  Raises:
    ApiError: it is not the name of such a resource, or it is of another project.
  """
  match = _NAME.fullmatch(given) if isinstance(given, str) else None
  if not match or match["kind"] != kind:
    raise invalid(f"{field}: must be a name like projects/PROJECT/locations/LOCATION/{kind}/ID")
  if match["project"] != project:
    raise ApiError(
      "PERMISSION_DENIED", f"{field}: is of another project than the request, {project}"
    )
  name = Name(*match.group("project", "location", "kind", "id"))
  if kind == "models":
    parse_model(name.id, field)
  else:
    check_id(name.id, field)
  return name


def split_model(given: str, field: str) -> Name:
  """Takes the name of a model of any project apart; raises ApiError for another one."""
  match = _NAME.fullmatch(given)
  return parse(given, "models", match["project"] if match else "", field)


def split(name: str) -> Name:
  """Takes a name that this server made apart."""
  _, project, _, location, kind, own = name.split("/")
  return Name(project, location, kind, own)


def parse_model(given: str, field: str = "model") -> tuple[str, str | None]:
  """Returns the name and the version or alias, if there is one, of NAME@VERSION."""
  match = _MODEL.fullmatch(given)
  if not match:
    raise invalid(f"{field}: {given[:70]!r} cannot be a model's id; write NAME or NAME@VERSION")
  return match["model"], match["version"]


def published(given: object) -> str | None:
  """Returns the id of publishers/google/models/ID, with or without a project; None for others."""
  match = _PUBLISHED.fullmatch(given) if isinstance(given, str) else None
  return match["id"] if match else None
