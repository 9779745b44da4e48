"""A job in the JSON of the API: a PipelineJob or a TuningJob."""

from collections.abc import Sequence
from typing import Any

from dss_jax.jobs.store import Job, Task

# What a client sends and gets back as it was.
_OF_PIPELINE = (
  "pipelineSpec",
  "labels",
  "runtimeConfig",
  "encryptionSpec",
  "serviceAccount",
  "network",
  "templateUri",
)
_OF_TUNING = (
  "baseModel", "tunedModelDisplayName", "description", "labels", "supervisedTuningSpec",
  "distillationSpec", "encryptionSpec", "serviceAccount",
)  # fmt: skip


def job_json(job: Job, tasks: Sequence[Task]) -> dict[str, Any]:
  """Returns a job of either kind."""
  return pipeline_json(job, tasks) if job.kind == "pipelineJobs" else tuning_json(job)


def pipeline_json(job: Job, tasks: Sequence[Task] | None = None) -> dict[str, Any]:
  """Returns a PipelineJob; without tasks, as in lists, it has no jobDetail."""
  values: dict[str, Any] = {
    "name": job.name,
    "displayName": job.display_name,
    "createTime": job.create_time,
    "startTime": job.start_time,
    "endTime": job.end_time,
    "updateTime": job.update_time,
    "state": f"PIPELINE_STATE_{job.state}",
    "error": job.error,
    **{name: job.request.get(name) for name in _OF_PIPELINE},
  }
  if tasks is not None:
    values["jobDetail"] = {
      "taskDetails": [_task(number, task) for number, task in enumerate(tasks, start=1)]
    }
  return {name: value for name, value in values.items() if value not in (None, "", {}, [])}


def _task(number: int, task: Task) -> dict[str, Any]:
  times = {"createTime": task.create_time, "startTime": task.start_time, "endTime": task.end_time}
  values = {
    # An int64, which proto-JSON writes as a text.
    "taskId": str(number),
    "taskName": task.name,
    "taskUniqueName": task.name,
    **times,
    "state": task.state,
    "error": task.error,
    "execution": {
      "displayName": task.name,
      "schemaTitle": "system.ContainerExecution",
      "metadata": {name: value for name, value in task.metadata.items() if name != "result"},
    },
    "pipelineTaskStatus": task.history,
  }
  return {name: value for name, value in values.items() if value is not None}


def tuning_json(job: Job) -> dict[str, Any]:
  """Returns a TuningJob."""
  values: dict[str, Any] = {
    "name": job.name,
    **{name: job.request.get(name) for name in _OF_TUNING},
    "state": f"JOB_STATE_{job.state}",
    "createTime": job.create_time,
    "startTime": job.start_time,
    "endTime": job.end_time,
    "updateTime": job.update_time,
    "error": job.error,
  }
  if job.result is not None:
    parent = f"projects/{job.project}/locations/{job.location}"
    made = job.result
    values["tunedModel"] = {
      "model": f"{parent}/models/{made['model']}@{made['version']}",
      "endpoint": made["endpoint"],
    }
  return {name: value for name, value in values.items() if value not in (None, "", {}, [])}
