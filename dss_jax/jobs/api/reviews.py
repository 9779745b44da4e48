"""What people do with a teacher's answers before a job trains on them: read, edit, approve.

A job with review_rationales is PAUSED when its rows are annotated, and has neither a process nor
devices. The edits are files in the run's folder (annotation/review.py).
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import pydantic

from dss_jax.annotation.html_page import SOUND, severity
from dss_jax.annotation.outcome import PROVENANCE, RATIONALES
from dss_jax.annotation.review import Review, ReviewedRow, StaleEdit
from dss_jax.errors import UserError
from dss_jax.jobs.api.filters import Field
from dss_jax.jobs.api.paging import page
from dss_jax.jobs.api_error import ApiError, invalid
from dss_jax.jobs.bodies.pipeline_body import Body
from dss_jax.jobs.service import JobService
from dss_jax.jobs.store import Job, now

MAX_PAGE_SIZE = 200
_ANNOTATED = "annotated.jsonl"
# Rows whose answers failed or raise concerns come first.
_DEFAULT_ORDER = "severity"
_FIELDS = {
  "text": Field("text", "search"),
  "status": Field("status"),
  "concerns": Field("concerns"),
  "has_concerns": Field("hasConcerns"),
  "edited": Field("edited"),
  "left_out": Field("leftOut"),
  "row": Field("name"),
  "severity": Field("severity"),
}


class SentEdit(Body):
  """An edit as a client sends it: what it leaves out stays, null removes a text.

  Attributes:
    row: its number, from 1.
    etag: of the row as the client read it.
  """

  row: Annotated[int, pydantic.Field(ge=1, lt=10**9, strict=True)]
  etag: Annotated[str, pydantic.Field(pattern=r"^[0-9]{1,9}$")]
  output_text: str | None = None
  rationale: str | None = None
  left_out: Annotated[bool, pydantic.Field(strict=True)] = False

  @property
  def changes(self) -> dict[str, Any]:
    """What is edited."""
    return {name: getattr(self, name) for name in self.model_fields_set - {"row", "etag"}}


class Reviews:
  """The annotated rows of the jobs of a service."""

  def __init__(self, service: JobService):
    self._service = service

  def page(self, job: Job, query: Mapping[str, str]) -> dict[str, Any]:
    """Returns a page of a job's annotated rows, and the figures of all of them.

    Args:
      query: filter, orderBy, pageSize and pageToken.

    Raises ApiError for a wrong query, or a job without annotated rows.
    """
    rows = list(self._rows(job))
    listed = page(
      map(_listed, rows),
      query,
      _FIELDS,
      key="rationales",
      default_order=_DEFAULT_ORDER,
      max_size=MAX_PAGE_SIZE,
    )
    numbers = [int(each["name"]) for each in listed.pop("rationales", [])]
    return {
      "rationales": [rationale_json(job, rows[number - 1]) for number in numbers],
      "review": {**_figures(rows), "editable": job.state == "PAUSED"},
      **listed,
    }

  def row(self, job: Job, number: int) -> dict[str, Any]:
    """Returns an annotated row; raises ApiError if there is none."""
    for row in self._rows(job):
      if row.number == number:
        return rationale_json(job, row)
    raise ApiError("NOT_FOUND", f"row {number}: there is none; rows are counted from 1")

  def edit(self, name: str, sent: SentEdit, user: str) -> dict[str, Any]:
    """Edits a row of a paused job, and returns it.

    Raises:
      ApiError: ABORTED if somebody else edited it since, FAILED_PRECONDITION if the job is not
        paused, INVALID_ARGUMENT for what could not be a row of training data.
    """
    review = self._review(self._service.get(name))
    with review.locked():
      job = self._paused(name)
      try:
        row = review.edit(sent.row, int(sent.etag), sent.changes, user, now())
      except StaleEdit as error:
        raise ApiError("ABORTED", str(error)) from None
      except UserError as error:
        raise invalid(str(error)) from None
    return rationale_json(job, row)

  def approve(self, name: str, user: str) -> Job:
    """Puts a paused job back into the queue, to train on its rows as they were edited.

    Raises ApiError FAILED_PRECONDITION if it is not paused, or nothing is left to train on.
    """
    review = self._review(self._service.get(name))
    with review.locked():
      self._paused(name)
      try:
        review.approve(user, now())
      except UserError as error:
        raise ApiError("FAILED_PRECONDITION", f"{name}: {error}") from None
      # It may have been cancelled meanwhile.
      if not self._service.store.change(name, ("PAUSED",), state="QUEUED"):
        self._paused(name)
    return self._service.get(name)

  def figures(self, job: Job) -> dict[str, int]:
    """Returns the numbers of a job's rows: all, with concerns, edited, left out."""
    return _figures(list(self._rows(job)))

  def _paused(self, name: str) -> Job:
    job = self._service.get(name)
    if job.state != "PAUSED":
      raise ApiError(
        "FAILED_PRECONDITION",
        f"{name}: is {job.state}; rationales are edited and approved while a job is PAUSED, which"
        " jobs with review_rationales are after their annotation",
      )
    return job

  def _review(self, job: Job) -> Review:
    path = self.path(job)
    if job.plan.get("key"):
      raise ApiError(
        "FAILED_PRECONDITION",
        f"{job.name}: its rationales are encrypted; read them with dss jobs open",
      )
    if not path.is_file():
      raise ApiError(
        "FAILED_PRECONDITION",
        f"{job.name}: has no rationales; they are there when its task annotate has ended",
      )
    return Review(path)

  def _rows(self, job: Job) -> Iterator[ReviewedRow]:
    return self._review(job).rows()

  def path(self, job: Job) -> pathlib.Path:
    """Returns the file of the teacher's answers."""
    return self._service.folder(job) / "model" / _ANNOTATED


def rationale_json(job: Job, row: ReviewedRow) -> dict[str, Any]:
  """Returns an annotated row as the API shows it."""
  provenance = row.annotated[PROVENANCE]
  annotated = {name: row.annotated.get(name) for name in row.changed}
  values = {
    "name": f"{job.name}/rationales/{row.number}",
    "row": row.number,
    "inputText": row.annotated["input_text"],
    "outputText": row.output_text,
    "rationale": row.rationale,
    "furtherRationales": [] if "rationale" in row.changed else _further(row),
    "leftOut": row.left_out,
    "status": provenance["status"],
    "reason": provenance.get("reason"),
    "concerns": _concerns(row),
    "teacherLabel": provenance.get("label"),
    "agreement": provenance.get("agreement"),
    # What the annotation wrote, where an edit changed it.
    "annotated": {_CAMEL[name]: text for name, text in annotated.items() if text is not None},
    "edits": [{"user": edit.user, "time": edit.time} for edit in row.edits],
    "etag": str(row.version),
  }
  return {name: value for name, value in values.items() if value not in (None, "", {}, [])}


_CAMEL = {"output_text": "outputText", "rationale": "rationale"}


def _further(row: ReviewedRow) -> list[str]:
  texts = row.annotated.get(RATIONALES)
  if not isinstance(texts, list):
    return []
  return [text for text in texts if isinstance(text, str) and text != row.rationale]


def _concerns(row: ReviewedRow) -> list[str]:
  provenance = row.annotated[PROVENANCE]
  dropped = [f"dropped for {name}" for name in provenance.get("dropped_for", [])]
  return [*provenance.get("concerns", []), *dropped]


def _has_concerns(row: ReviewedRow) -> bool:
  return severity(row.annotated) < SOUND


def _listed(row: ReviewedRow) -> dict[str, str]:
  """Returns what filters and orders read of a row."""
  texts = (row.annotated["input_text"], row.output_text, row.rationale)
  return {
    "name": f"{row.number:09}",
    "text": "\n".join(filter(None, texts)).casefold(),
    "status": row.annotated[PROVENANCE]["status"],
    "concerns": ", ".join(_concerns(row)),
    "hasConcerns": _text(_has_concerns(row)),
    "edited": _text(bool(row.changed)),
    "leftOut": _text(row.left_out),
    "severity": f"{severity(row.annotated):02}",
  }


def _text(flag: bool) -> str:
  return "true" if flag else "false"


def _figures(rows: list[ReviewedRow]) -> dict[str, int]:
  return {
    "rows": len(rows),
    "withConcerns": sum(map(_has_concerns, rows)),
    "edited": sum(bool(row.changed) for row in rows),
    "leftOut": sum(row.left_out for row in rows),
  }
