"""The paths of a job's pages: its name in the API, with what is done with it as a verb."""

from starlette.requests import Request

from dss_jax.console.job_list import KINDS
from dss_jax.jobs.api_error import not_found
from dss_jax.jobs.service import JobService
from dss_jax.jobs.store import Job

JOB = "/projects/{project}/locations/{location}/{kind}/{id}"


def job_of(service: JobService, request: Request) -> Job:
  """Returns the job of a path that begins with JOB; raises ApiError if there is none."""
  parts = request.path_params
  name = "projects/{project}/locations/{location}/{kind}/{id}".format(**parts)
  if parts["kind"] not in KINDS:
    raise not_found(name[:200])
  service.check_parent(parts["project"], parts["location"])
  return service.get(name[:300])
