"""The form for a new distillation: four steps, a summary with what it will take, and the job."""

import dataclasses
from collections.abc import Mapping, Sequence

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from dss_jax.config.schema import DataConfig
from dss_jax.console.console import HOME, Console, redirect
from dss_jax.console.examination import Examination, Examiner, Source
from dss_jax.console.forecast import forecast
from dss_jax.console.forms import FORM_BYTES, text_of
from dss_jax.console.splitting import split
from dss_jax.console.visit import caller_of
from dss_jax.console.wizard_choices import choices
from dss_jax.console.wizard_values import (
  EVALUATION_EXAMINED,
  EXAMINED,
  REVIEW,
  STEPS,
  Problem,
  api_problems,
  body_of,
  defaults,
  first_step,
  own_problems,
  read_values,
  step_number,
  values_of,
)
from dss_jax.errors import UserError
from dss_jax.jobs.api.access import check_role
from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.bodies.job_config import read_config
from dss_jax.jobs.bodies.schema import PARAMETERS
from dss_jax.jobs.google_errors import without_places
from dss_jax.jobs.store import Job
from dss_jax.serving.errors import Refused

SECTION = "create"
_ANY_LOCATION = "us-central1"
_NAMES = [step.name for step in STEPS]
# The fields that take files: which URI a file becomes.
_FILES = {"dataset": ("dataset_file", "dataset_uri"),
          "evaluation": ("evaluation_file", "evaluation_data_uri")}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Checked:
  """Attributes:

  job: as it would be created; None while something is wrong.
  problems: all of them, whatever step they are of.
  """

  job: Job | None
  problems: Sequence[Problem]


class WizardPages:
  """The form; every step carries the values of the others."""

  def __init__(self, console: Console, examiner: Examiner):
    self._console = console
    self._service = console.service
    self._examiner = examiner

  def routes(self) -> list[BaseRoute]:
    path = "/projects/{project}/create"
    most = self._service.uploads.max_bytes + FORM_BYTES
    return [
      self._console.show(path, self._begin),
      self._console.act(path, self._send, limit_bytes=most),
    ]

  def _begin(self, request: Request) -> Response:
    project = request.path_params["project"]
    check_role(caller_of(request), project, "POST", request.url.path)
    offered = choices(self._service, project)
    if name := request.query_params.get("like", ""):
      values = values_of(self._job_of(project, name))
    else:
      values = {**defaults(), **offered.defaults()}
      values["dataset_uri"] = request.query_params.get("data", "")
    return self._show(request, 0, values)

  def _job_of(self, project: str, name: str) -> Job:
    job = self._service.get(name)
    if job.project != project or job.kind != "pipelineJobs":
      raise ApiError("NOT_FOUND", "there is no distillation of that name in this project")
    return job

  def _send(self, request: Request, form: FormData) -> Response:
    """Takes a step, and shows the one that is asked for, or the first one with a mistake."""
    number = step_number(text_of(form, "step"))
    values = read_values(form, STEPS[number])
    problems = self._take_file(request, form, STEPS[number].name, values)
    go = text_of(form, "go", "next")
    target = {"next": number + 1, "back": number - 1, "create": len(STEPS) - 1}.get(
      go, step_number(go)
    )
    target = min(max(target, 0), len(STEPS) - 1)
    if problems:
      return self._show(request, number, values, problems)
    if target < number:
      return self._show(request, target, values)
    checked = self._check(request, values)
    wrong = first_step(checked.problems, target if go == "create" else target - 1)
    if wrong is not None:
      return self._show(request, wrong, values, checked.problems, checked.job)
    for step, examined, uri in (
      (1, EXAMINED, values["dataset_uri"]),
      (2, EVALUATION_EXAMINED, _own_evaluation(values)),
    ):
      if target <= step or not uri:
        continue
      examination = self._examine(request, values, checked.job)
      was_shown = values[examined] == uri
      if not was_shown or (examination is not None and not examination.is_good):
        values[examined] = uri
        return self._show(request, step, values, (), checked.job)
    if go == "create":
      return self._create(request, values)
    return self._show(request, target, values, (), checked.job)

  def _take_file(
    self, request: Request, form: FormData, step: str, values: dict[str, str]
  ) -> list[Problem]:
    """Stores the file that a step was sent with; one with bad lines is not kept."""
    file_name, uri_name = _FILES.get(step, ("", ""))
    file = form.get(file_name)
    if not isinstance(file, UploadFile) or not file.filename:
      return []
    project, user = request.path_params["project"], caller_of(request).name
    try:
      upload = self._service.uploads.add(project, file.filename, file.file, user)
    except Refused as error:
      return [Problem(file_name, f"Upload failed: {error}")]
    source = Source(self._service.uploads.path(project, upload), upload.name)
    found = self._examiner.examine(source, None, DataConfig())
    if not found.is_good:
      self._service.uploads.delete(project, upload.id, ())
      return [Problem(file_name, sentence) for sentence in _sentences(found)]
    values[uri_name] = upload.uri
    if step == "evaluation":
      values["evaluation_kind"] = "own"
    return []

  def _check(self, request: Request, values: Mapping[str, str]) -> Checked:
    """Returns the job that the values ask for, or everything that is wrong."""
    project = request.path_params["project"]
    problems = own_problems(values)
    location = values["location"]
    try:
      self._service.check_parent(project, location)
    except ApiError as error:
      problems.append(Problem("location", f"Region {error}"))
      location = _ANY_LOCATION
    job = None
    try:
      job = self._service.prepare(
        "pipelineJobs",
        project,
        location,
        body_of({**values, "location": location}, project),
        user=caller_of(request).name,
      )
    except ApiError as error:
      problems += api_problems(without_places(each, self._service) for each in error.problems)
    return Checked(None if problems else job, problems)

  def _create(self, request: Request, values: dict[str, str]) -> Response:
    project, user = request.path_params["project"], caller_of(request).name
    made = []
    if values["evaluation_kind"] == "split":
      source = self._source(project, values["dataset_uri"])
      try:
        made = list(split(self._service.uploads, project, source.path, source.title,
                          float(values["split_percent"]), user))  # fmt: skip
      except UserError as error:
        message = str(error).replace(source.path, source.title)
        return self._show(request, 2, values, [Problem("split_percent", message)])
      train, evaluation = made
      values = {
        **values,
        "dataset_uri": train.uri,
        "evaluation_data_uri": evaluation.uri,
        "evaluation_kind": "own",
      }
    try:
      job = self._service.create(
        "pipelineJobs", project, values["location"], body_of(values, project), user=user
      )
    except BaseException:
      for upload in made:
        self._service.uploads.delete(project, upload.id, ())
      raise
    return redirect(f"{HOME}/{job.name}")

  def _source(self, project: str, uri: str) -> Source:
    """Returns the file of a URI; raises ApiError for one that a job may not read."""
    path = self._service.resolve(uri, "dataset_uri", project)
    for upload in self._service.uploads.list(project):
      if upload.uri == uri:
        return Source(path, upload.name)
    return Source(path, uri)

  def _examine(
    self, request: Request, values: Mapping[str, str], job: Job | None
  ) -> Examination | None:
    """Returns what is in the data of the form; None while it names none."""
    project, own = request.path_params["project"], _own_evaluation(values)
    try:
      train = self._source(project, values["dataset_uri"])
      evaluation = self._source(project, own) if own else None
    except ApiError:
      return None
    data = DataConfig() if job is None else read_config(job.config).data
    return self._examiner.examine(train, evaluation, data)

  def _show(
    self,
    request: Request,
    number: int,
    values: Mapping[str, str],
    problems: Sequence[Problem] = (),
    job: Job | None = None,
  ) -> Response:
    """Returns the page of a step."""
    project, step = request.path_params["project"], STEPS[number]
    examination = outlook = None
    if step.name == "summary" and job is None:
      checked = self._check(request, values)
      job, problems = checked.job, problems or checked.problems
    is_examined = values[EXAMINED] == values["dataset_uri"] != ""
    if is_examined and step.name in ("dataset", "evaluation", "summary"):
      examination = self._examine(request, values, job)
    if step.name == "summary" and job is not None and examination and examination.report:
      try:
        outlook = forecast(self._service, job, examination.report)
      except UserError as error:
        # The job would say the same, and fail.
        problems = [Problem("", without_places(str(error), self._service))]
    shown = {field.name for field in step.fields}
    return self._console.page(
      request,
      "wizard.html",
      section=SECTION,
      status=400 if problems else 200,
      steps=STEPS,
      number=number,
      step=step,
      values=values,
      carried={name: value for name, value in values.items() if name not in shown},
      problems=[each for each in problems if step.name == "summary" or _is_of(each, shown, step)],
      errors={each.field: each.message for each in reversed(problems)},
      examination=examination,
      forecast=outlook,
      job=job,
      choices=choices(self._service, project),
      uploads=self._service.uploads.list(project),
      max_bytes=self._service.uploads.max_bytes,
      can_review=REVIEW in PARAMETERS,
    )


def _is_of(problem: Problem, shown: set[str], step: object) -> bool:
  return problem.field in shown or problem.field.endswith("_file") or not problem.field


def _own_evaluation(values: Mapping[str, str]) -> str:
  return values["evaluation_data_uri"] if values["evaluation_kind"] == "own" else ""


def _sentences(found: Examination) -> list[str]:
  """Returns what is wrong with a file, a sentence for each bad line."""
  if found.failure:
    return [found.failure]
  lines = [f"Line {each.line}: {each.what}" for each in found.problems]
  more = found.total - len(lines)
  return lines + ([f"and {more:,} more bad line{'' if more == 1 else 's'}"] if more else [])
