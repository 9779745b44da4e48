"""The one object that the routes call: what a server has under its root, and what it does."""

import pathlib
import re
from typing import Any

from dss_jax.jobs import places
from dss_jax.jobs.api_error import ApiError, invalid, not_found
from dss_jax.jobs.settings import Settings
from dss_jax.jobs.store import Job, Kind, Store
from dss_jax.student.registry import Registry

# A project's id, or its number.
_PROJECT = re.compile(r"[a-z][a-z0-9:.-]{0,61}[a-z0-9]|[0-9]{1,20}")
_LOCATION = re.compile(r"[a-z][a-z0-9-]{1,38}[a-z0-9]")


class JobService:
  """The jobs, models and files of a server.

  Attributes:
    root: the server's folder: jobs.sqlite, jobs/ (a folder for each), registry/.
    settings: the operator's.
    store: the jobs and their tasks.
  """

  def __init__(self, root: pathlib.Path, settings: Settings):
    self.root = root
    self.settings = settings
    self.store = Store(root)

  @property
  def projects(self) -> tuple[str, ...] | None:
    """The projects that there are; None for any."""
    return self.settings.projects

  def check_parent(self, project: str, location: str, *, any_location: bool = False) -> None:
    """Raises ApiError unless the path of a request names a project and a location of this server.

    Args:
      any_location: whether "-" stands for all locations.
    """
    if not _PROJECT.fullmatch(project):
      raise invalid(f"{project[:70]!r}: cannot be a project's id")
    if not _LOCATION.fullmatch(location) and not (any_location and location == "-"):
      raise invalid(f"{location[:70]!r}: cannot be a location; write one such as us-central1")
    if self.projects is not None and project not in self.projects:
      raise not_found(f"projects/{project}")

  def registry(self, project: str) -> Registry:
    """Returns the registry of a project's students; each project has its own."""
    folder = pathlib.Path(self.settings.registry or self.root / "registry")
    return Registry(folder / project)

  def resolve(self, uri: str, field: str) -> str:
    """Returns where a URI of a request leads; raises ApiError as places.resolve does."""
    return places.resolve(self.settings, uri, field)

  def folder(self, job: Job) -> pathlib.Path:
    """Returns the folder of a job: model/ (the run), worker.log, worker.lock, evaluation.json."""
    return self.root / "jobs" / job.project / job.location / job.kind / job.job_id

  def create(
    self,
    kind: Kind,
    project: str,
    location: str,
    body: dict[str, Any],
    *,
    job_id: str | None = None,
    user: str | None = None,
  ) -> Job:
    """Adds a job to the queue; raises ApiError, with everything that is wrong, if it cannot run."""
    raise ApiError("UNIMPLEMENTED", "jobs cannot be created yet")

  def get(self, name: str) -> Job:
    """Returns a job by projects/P/locations/L/KIND/ID; raises ApiError if there is none."""
    job = self.store.get(name)
    if job is None:
      raise not_found(name)
    return job

  def of_parent(self, kind: Kind, project: str, location: str) -> list[Job]:
    """Returns the jobs of a parent, newest first; location "-" means all."""
    return self.store.of_parent(kind, project, location)

  def cancel(self, name: str) -> None:
    """Asks a job to stop, with its checkpoint kept; a job that has ended stays as it is."""
    raise ApiError("UNIMPLEMENTED", "jobs cannot be cancelled yet")

  def delete(self, names: list[str]) -> None:
    """Deletes ended jobs and their folders, all or none; their students stay registered."""
    raise ApiError("UNIMPLEMENTED", "jobs cannot be deleted yet")
