"""A job's student as clients find it: labelled with the model that it began as, and deployed."""

import pathlib

from dss_jax.jobs.bodies.model_body import BASE_MODEL_LABEL
from dss_jax.jobs.resources import Resources
from dss_jax.jobs.store import Job
from dss_jax.jobs.students.endpoints import Endpoints
from dss_jax.student.registry import Registry, Version


def publish(root: pathlib.Path, registry: Registry, version: Version, job: Job) -> str:
  """Describes and deploys the version that a job registered; returns its endpoint's name.

  Doing it again changes nothing.
  """
  plan = job.plan
  display_name = plan["display_name"]
  registry.describe(
    version.reference,
    {
      "display_name": display_name,
      "labels": {
        **job.request.get("labels", {}),
        BASE_MODEL_LABEL: plan["student"].replace("@", "-"),
      },
      "pipeline_job": job.name,
    },
  )
  endpoints = Endpoints(Resources(root), lambda project: registry)
  model = f"projects/{job.project}/locations/{plan['location']}/models/{version.name}"
  return str(
    endpoints.deploy_new(
      job.project, plan["location"], version, model=model, display_name=display_name
    )
  )
