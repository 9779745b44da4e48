"""The list of a project's jobs, of both kinds, with filters and pages."""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from dss_jax.console.console import Console
from dss_jax.jobs.api.filters import Field
from dss_jax.jobs.api.paging import page
from dss_jax.jobs.store import Job, Kind

SECTION = "jobs"
STATES = (
  "QUEUED", "PENDING", "RUNNING", "PAUSED", "SUCCEEDED", "FAILED", "CANCELLING", "CANCELLED",
)  # fmt: skip
KINDS: dict[Kind, str] = {"pipelineJobs": "Distillation", "tuningJobs": "Tuning"}
_PAGE_SIZE = "25"
_FIELDS = {
  "state": Field("state"),
  "kind": Field("kind"),
  "display_name": Field("searched"),
  "create_time": Field("createTime", "time"),
}


class JobListPages:
  """The first page of a project."""

  def __init__(self, console: Console):
    self._console = console

  def routes(self) -> list[BaseRoute]:
    return [self._console.show("/projects/{project}/jobs", self._list)]

  def _list(self, request: Request) -> Response:
    query = request.query_params
    chosen = {name: query.get(name, "").strip() for name in ("name", "state", "kind")}
    service, project = self._console.service, request.path_params["project"]
    jobs = [job for kind in KINDS for job in service.of_parent(kind, project, "-")]
    asked = {
      "filter": _filter(chosen),
      "pageSize": _PAGE_SIZE,
      "pageToken": query.get("page", ""),
    }
    found = page(map(_row, jobs), asked, _FIELDS, key="jobs")
    rows = found.get("jobs", [])
    for row in rows:
      if row["state"] == "RUNNING":
        tasks = service.store.tasks(row["name"])
        row["task"] = next((task.name for task in tasks if task.state == "RUNNING"), "")
    is_part = request.headers.get("hx-target") == "rows"
    return self._console.page(
      request,
      "job_rows.html" if is_part else "jobs.html",
      section=SECTION,
      rows=rows,
      chosen=chosen,
      is_filtered=any(chosen.values()),
      states=STATES,
      kinds=KINDS,
      here=str(request.url.path) + (f"?{request.url.query}" if request.url.query else ""),
      next_page=found.get("nextPageToken", ""),
      is_first="page" not in query,
    )


def _row(job: Job) -> dict[str, Any]:
  made = job.result or {}
  return {
    "name": job.name,
    "id": job.job_id,
    "title": job.display_name or job.job_id,
    "searched": f"{job.display_name} {job.job_id} {job.plan['display_name']}".lower(),
    "kind": job.kind,
    "state": job.state,
    "student": job.plan["student"],
    "location": job.location,
    "createTime": job.create_time,
    "model": f"{made['model']}@{made['version']}" if made else "",
    "task": "",
  }


def _filter(chosen: dict[str, str]) -> str:
  """Returns the choices in the language of the API's filters."""
  terms = [f"{name}={json.dumps(chosen[name])}" for name in ("state", "kind") if chosen[name]]
  if chosen["name"]:
    # A quoted text, in which `*` stands for anything.
    words = chosen["name"].lower().replace("\\", "\\\\").replace('"', '\\"')
    terms.append(f'display_name:"{words}"')
  return " AND ".join(terms)
