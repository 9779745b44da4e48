"""Where a request's URIs lead: to the operator's buckets and folders, uploads, nowhere else."""

import os
import pathlib
import re
from collections.abc import Sequence

from dss_jax.jobs.api_error import ApiError, invalid
from dss_jax.jobs.bodies.schema import shown
from dss_jax.jobs.settings import Settings
from dss_jax.jobs.uploads import SCHEME, upload_path
from dss_jax.storage.files import is_url, join

_MAX_CHARACTERS = 1024
_BUCKET = re.compile(r"[a-z0-9][a-z0-9_.-]{1,221}")


def resolve(settings: Settings, uri: str, field: str, project: str) -> str:
  """Returns the path, or the URL of real storage, that a request's URI means.

  Links are followed before the path is compared with the operator's folders.

  Args:
    field: of the request, for messages.
    project: of the request.

  Raises:
    ApiError: INVALID_ARGUMENT for a URI that is none, PERMISSION_DENIED for a place that the
      operator did not open.
  """
  if not uri or len(uri) > _MAX_CHARACTERS or not uri.isprintable():
    raise invalid(
      f"{field}: must be a printable path or gs:// URI of 1 to {_MAX_CHARACTERS} characters"
    )
  if uri.startswith("gs://"):
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    place = settings.buckets.get(bucket) if _BUCKET.fullmatch(bucket) else None
    if place is None or not place.is_for(project):
      raise ApiError(
        "PERMISSION_DENIED",
        f"{field}: the bucket {shown(bucket)} is not configured here for {project}; the operator's"
        " settings name `buckets`",
      )
    _check_parts(name, field)
    root = place.path
    parts = list(filter(None, name.split("/")))
    return join(root, *parts) if is_url(root) else _below([root], join(root, *parts), field)
  if uri.startswith(SCHEME) and settings.uploads is not None:
    path = upload_path(settings.uploads, project, uri)
    if path is None:
      raise invalid(f"{field}: {shown(uri)} is no upload of this server")
    return path
  if is_url(uri):
    raise invalid(f"{field}: {uri.partition(':')[0][:20]}:// is not read here; give a gs:// URI")
  _check_parts(uri, field)
  if not os.path.isabs(uri):
    raise invalid(
      f"{field}: {shown(uri)} is relative; give a gs:// URI, or a path that begins with /"
    )
  roots = [place.path for place in settings.folders if place.is_for(project)]
  return _below(roots, uri, field)


def _check_parts(name: str, field: str) -> None:
  if ".." in name.split("/"):
    raise invalid(f"{field}: a part of the path is '..'; give the path without it")


def _below(roots: Sequence[str], path: str, field: str) -> str:
  """Returns the path with its links followed; raises ApiError unless it is below a root."""
  real = pathlib.Path(os.path.realpath(path))
  if any(real.is_relative_to(os.path.realpath(root)) for root in roots):
    return str(real)
  raise ApiError(
    "PERMISSION_DENIED", f"{field}: is outside the folders that the operator's settings name"
  )
