"""Models: the list, a model with its versions and aliases, and where a version comes from."""

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from dss_jax.console.console import HOME, Console, redirect
from dss_jax.console.forms import text_of
from dss_jax.console.job_paths import JOB, job_of
from dss_jax.errors import UserError
from dss_jax.jobs.api.filters import Field
from dss_jax.jobs.api.paging import page
from dss_jax.jobs.api_error import ApiError, not_found
from dss_jax.jobs.bodies.model_body import model_json
from dss_jax.jobs.google_errors import without_places
from dss_jax.jobs.names import check_id, parse
from dss_jax.jobs.queue.worker import EVALUATION_PAGE
from dss_jax.jobs.store import Job
from dss_jax.jobs.students.endpoints import Endpoints
from dss_jax.jobs.students.versions import find_version
from dss_jax.serving.errors import Refused
from dss_jax.student.model_dir import CONFIG
from dss_jax.student.registry import DEFAULT, LATEST, Registry, Version

SECTION = "models"
_PAGE_SIZE = "25"
_FIELDS = {
  "display_name": Field("searched", "search"),
  "create_time": Field("createTime", "time"),
}
# Of the metrics of a version, those that the tables of versions have.
COLUMNS = (
  ("eval_total_loss", "Evaluation loss"),
  ("eval_fraction_of_correct_next_step_preds", "Right next tokens"),
  ("label/eval_sequence_accuracy", "Labels wholly right"),
)
_LINEAGE = (
  ("initial_checkpoint", "Initial checkpoint"),
  ("dataset", "Training data"),
  ("data_digest", "Digest of the training data"),
  ("evaluation_data_digest", "Digest of the evaluation data"),
  ("teacher", "Teacher"),
  ("prompt", "Prompt"),
  ("prompt_digest", "Digest of the prompt"),
)
# A report has its own script and style, and shows what a student and a teacher wrote. In a
# sandbox it is a page of no site: it has no cookies, and can load and send nothing.
_REPORT_POLICY = (
  "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src"
  " 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class ModelPages:
  """The pages of a project's registry."""

  def __init__(self, console: Console):
    self._console = console
    self._service = console.service

  def routes(self) -> list[BaseRoute]:
    console, model = self._console, "/projects/{project}/models/{model}"
    return [
      console.show("/projects/{project}/models", self._list),
      console.act(model + ":mergeVersionAliases", self._merge_aliases),
      console.act(model + ":undeployModel", self._undeploy),
      console.act(model + ":deleteVersion", self._delete),
      console.act(model + ":delete", self._delete),
      console.show(model, self._show),
      console.show(JOB + ":report", self._report),
    ]

  def _list(self, request: Request) -> Response:
    registry = self._registry(request)
    text = request.query_params.get("text", "").strip()[:500]
    words = text.replace("\\", "\\\\").replace('"', '\\"')
    asked = {
      "filter": f'display_name:"{words}"' if text else "",
      "pageSize": _PAGE_SIZE,
      "pageToken": request.query_params.get("page", ""),
    }
    models = [self._listed(registry, name, request) for name in registry.names()]
    found = page(models, asked, _FIELDS, key="models")
    return self._console.page(
      request,
      "models.html",
      section=SECTION,
      models=found.get("models", []),
      columns=COLUMNS,
      text=text,
      next_page=found.get("nextPageToken", ""),
      is_first="page" not in request.query_params,
    )

  def _listed(self, registry: Registry, name: str, request: Request) -> dict[str, Any]:
    versions = registry.versions(name)
    default = next((each for each in versions if DEFAULT in each.aliases), versions[-1])
    shown = self._version(request, default, [])
    return {
      **shown,
      "searched": f"{name} {shown['title']} {default.details.get('description', '')}".casefold(),
      "createTime": versions[-1].record["created"],
      "versions": len(versions),
      "aliases": sorted({alias for each in versions for alias in each.aliases} - {LATEST}),
    }

  def _show(self, request: Request) -> Response:
    return self._page(request)

  def _page(self, request: Request, error: Exception | None = None) -> Response:
    """Returns the page of a model, or of NAME@VERSION.

    Args:
      error: why a form of the page was refused.
    """
    registry = self._registry(request)
    version = find_version(registry, request.path_params["model"])
    deployments = self._endpoints(request).deployments(request.path_params["project"])
    versions = [
      self._version(request, each, deployments.get((each.name, each.number), []))
      for each in reversed(registry.versions(version.name))
    ]
    is_version = "@" in request.path_params["model"]
    own = next(each for each in versions if each["number"] == version.number)
    status, message = 200, ""
    if error is not None:
      refusal = error if isinstance(error, Refused) else None
      status = 400 if refusal is None else refusal.status
      message = without_places(str(error), self._service)
    return self._console.page(
      request,
      "version.html" if is_version else "model.html",
      section=SECTION,
      status=status,
      error=message,
      versions=versions,
      version=own,
      columns=COLUMNS,
      **(self._details(request, version) if is_version else {}),
    )

  def _version(
    self, request: Request, version: Version, deployed: list[dict[str, str]]
  ) -> dict[str, Any]:
    """Returns what the tables have of a version."""
    shown = model_json(version, request.path_params["project"], "-", deployed)
    return {
      "name": version.name,
      "number": version.number,
      "reference": version.reference,
      "title": shown["displayName"],
      "description": shown.get("description", ""),
      "aliases": [alias for alias in version.aliases if alias != LATEST],
      "is_latest": LATEST in version.aliases,
      "created": shown["createTime"],
      "student": version.details.get("labels", {}).get("student") or version.record.get("student"),
      "metrics": version.record.get("metrics") or {},
      "deployed": deployed,
    }

  def _details(self, request: Request, version: Version) -> dict[str, Any]:
    """Returns what the page of a version has besides."""
    record, project = version.record, request.path_params["project"]
    job = self._service.of_model(project, version.name, version.number)
    lineage = record.get("lineage") or {}
    path = version.folder / CONFIG
    config = path.read_text(encoding="utf-8") if path.is_file() else ""
    facts = [
      (title, without_places(str(lineage[key]), self._service))
      for key, title in _LINEAGE
      if lineage.get(key)
    ]
    return {
      "facts": _with_requests_names(facts, job),
      "review": lineage.get("review"),
      "record": record,
      "config": without_places(config, self._service),
      "job": job,
      "has_report": job is not None and self._service.has_file(job, EVALUATION_PAGE),
    }

  def _merge_aliases(self, request: Request, form: FormData) -> Response:
    version = find_version(self._registry(request), request.path_params["model"])
    try:
      self._registry(request).merge_aliases(version.reference, [text_of(form, "alias")])
    except UserError as error:
      return self._page(request, error)
    return redirect(request.url.path.rpartition(":")[0])

  def _undeploy(self, request: Request, form: FormData) -> Response:
    version = find_version(self._registry(request), request.path_params["model"])
    name = parse(text_of(form, "endpoint"), "endpoints", request.path_params["project"], "endpoint")
    try:
      self._endpoints(request).undeploy(name, check_id(text_of(form, "deployed"), "deployed"))
    except ApiError as error:
      return self._page(request, error)
    if (version.name, version.number) not in self._endpoints(request).deployments(name.project):
      request.state.pool.drop(name.project, version.reference)
    return redirect(request.url.path.rpartition(":")[0])

  def _delete(self, request: Request, form: FormData) -> Response:
    """Deletes a model, or with deleteVersion one of its versions."""
    version = find_version(self._registry(request), request.path_params["model"])
    is_model = request.url.path.endswith(":delete")
    try:
      self._registry(request).delete(version.name if is_model else version.reference)
    except UserError as error:
      return self._page(request, error)
    base = f"{HOME}/projects/{request.path_params['project']}/models"
    return redirect(base if is_model else f"{base}/{version.name}")

  def _report(self, request: Request) -> Response:
    text = self._report_of(job_of(self._service, request))
    if text is None:
      raise not_found("the report of this evaluation")
    headers = {"content-security-policy": _REPORT_POLICY, "x-frame-options": "DENY"}
    return Response(text, media_type="text/html", headers=headers)

  def _report_of(self, job: Job) -> str | None:
    try:
      with self._service.open_file(job, EVALUATION_PAGE) as file:
        return without_places(file.read().decode("utf-8"), self._service)
    except FileNotFoundError:
      return None

  def _registry(self, request: Request) -> Registry:
    return self._service.registry(request.path_params["project"])

  def _endpoints(self, request: Request) -> Endpoints:
    endpoints = request.state.endpoints
    assert isinstance(endpoints, Endpoints)
    return endpoints


def _with_requests_names(facts: list[tuple[str, str]], job: Job | None) -> list[tuple[str, str]]:
  """Returns the facts with the names of the job's request for places on the server."""
  if job is None:
    return facts
  names: Mapping[str, str | None] = {
    "Teacher": job.plan["teacher"],
    "Training data": next(iter(job.plan["uris"].values()), None),
  }
  return [(title, names.get(title) or value) for title, value in facts]
