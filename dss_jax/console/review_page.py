"""The review of a job's rationales: read and searched, edited, left out, approved."""

import re
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from dss_jax.console.console import HOME, Console, redirect
from dss_jax.console.forms import text_of
from dss_jax.console.job_list import SECTION
from dss_jax.console.job_paths import JOB, job_of
from dss_jax.console.visit import caller_of, visit_of
from dss_jax.jobs.api.reviews import Reviews, SentEdit
from dss_jax.jobs.bodies.pipeline_body import read_body
from dss_jax.jobs.google_errors import refused
from dss_jax.jobs.store import Job
from dss_jax.serving.errors import Refused

_PAGE_SIZE = "20"
# Which rows are shown: a choice, its words, and the filter of the API.
SHOWN = (
  ("", "All rows", ""),
  ("open", "With concerns, not edited yet", "has_concerns=true AND edited=false"
   " AND left_out=false"),
  ("concerns", "With concerns", "has_concerns=true"),
  ("edited", "Edited", "edited=true"),
  ("left-out", "Left out of training", "left_out=true"),
)  # fmt: skip
CONCERNS = {
  "agreement": "few of the teacher's answers agree",
  "gold": "the teacher's label is another than the row's own",
  "length": "very short, or very long",
  "unmentioned": "does not mention its label",
  "cut-off": "ends within a sentence",
  "echo": "repeats the input or the prompt",
  "several-answers": "states several labels",
}
STATUSES = {
  "failed": "the teacher did not answer",
  "unasked": "the budget was spent before this row",
  "unparsable": "no rationale was found in the answer",
  "undecided": "no single label was found in the answers",
}
_ROW = re.compile(r"[0-9]{1,9}")
_TEXTS = {"output_text": "outputText", "rationale": "rationale"}


class ReviewPages:
  """The page of a job's rationales, and the forms in it."""

  def __init__(self, console: Console):
    self._console = console
    self._service = console.service
    self._reviews = Reviews(console.service)

  def routes(self) -> list[BaseRoute]:
    console = self._console
    return [
      console.show(JOB + ":rationales", self._show),
      console.act(JOB + ":editRationale", self._edit),
      console.act(JOB + ":approve", self._approve),
    ]

  def _show(self, request: Request) -> Response:
    return self._page(request, job_of(self._service, request))

  def _page(
    self, request: Request, job: Job, failed: Mapping[str, Any] | None = None, status: int = 200
  ) -> Response:
    """Returns the page.

    Args:
      failed: the row whose edit was refused, with what was typed.
    """
    query = request.query_params
    chosen = {name: query.get(name, "").strip()[:500] for name in ("text", "show")}
    asked = {
      "filter": _filter(chosen),
      "pageSize": _PAGE_SIZE,
      "pageToken": query.get("page", ""),
    }
    found = self._reviews.page(job, asked)
    rows = found["rationales"]
    if failed is not None:
      rows = [failed if row["row"] == failed["row"] else row for row in rows]
      if failed not in rows:
        rows.insert(0, failed)
    return self._console.page(
      request,
      "review.html",
      section=SECTION,
      status=status,
      rows=rows,
      figures=found["review"],
      chosen=chosen,
      is_filtered=any(chosen.values()),
      shown=[choice[:2] for choice in SHOWN],
      next_page=found.get("nextPageToken", ""),
      is_first="page" not in query,
      **self._values(request, job),
    )

  def _values(self, request: Request, job: Job) -> dict[str, Any]:
    return {
      "job": job,
      "url": f"{HOME}/{job.name}",
      "query": f"?{request.url.query}" if request.url.query else "",
      "can_edit": job.state == "PAUSED" and visit_of(request).may("editor"),
      "concern_notes": CONCERNS,
      "status_notes": STATUSES,
    }

  def _edit(self, request: Request, form: FormData) -> Response:
    job = job_of(self._service, request)
    is_part = "hx-request" in request.headers
    try:
      row = self._edited(job, form, caller_of(request).name)
    except Refused as error:
      row = self._failed(job, form, error)
      if not is_part:
        return self._page(request, job, row, error.status)
    if is_part:
      # A refusal, too, is shown in its place; other statuses htmx would pass over.
      return self._console.page(
        request,
        "review_row.html",
        row=row,
        figures=self._reviews.figures(job),
        is_part=True,
        **self._values(request, job),
      )
    back = f"{HOME}/{job.name}:rationales"
    return redirect(f"{back}?{request.url.query}#row-{row['row']}")

  def _edited(self, job: Job, form: FormData, user: str) -> dict[str, Any]:
    number = _number(form)
    body: dict[str, Any] = {
      "row": text_of(form, "row") if number is None else number,
      "etag": text_of(form, "etag"),
    }
    # The row is read for its texts alone; whether it is still the same one, the edit decides.
    row = {} if number is None else self._reviews.row(job, number)
    for name, key in _TEXTS.items():
      typed = _typed(form, name)
      if typed is not None and typed != _plain(row.get(key, "")):
        body[key] = typed if typed.strip() else None
    if left_out := text_of(form, "left_out"):
      body["leftOut"] = left_out == "true"
    return self._reviews.edit(job.name, read_body(SentEdit, body, "edit"), user)

  def _failed(self, job: Job, form: FormData, error: Refused) -> dict[str, Any]:
    """Returns a row as it is, with what was typed and why it was refused; else raises that."""
    number = _number(form)
    if number is None:
      raise error
    row = self._reviews.row(job, number)
    typed = {name: _typed(form, name) or "" for name in _TEXTS}
    return {**row, "typed": typed, "error": str(refused(error, self._service))}

  def _approve(self, request: Request, form: FormData) -> Response:
    job = job_of(self._service, request)
    self._reviews.approve(job.name, caller_of(request).name)
    return redirect(f"{HOME}/{job.name}")


def _filter(chosen: Mapping[str, str]) -> str:
  """Returns the choices in the language of the API's filters."""
  terms = [filter_ for name, _, filter_ in SHOWN if name == chosen["show"] and filter_]
  if chosen["text"]:
    words = chosen["text"].replace("\\", "\\\\").replace('"', '\\"')
    terms.append(f'text:"{words}"')
  return " AND ".join(terms)


def _number(form: FormData) -> int | None:
  """Returns the number of a form's row; None if it has none."""
  text = text_of(form, "row")
  return int(text) if _ROW.fullmatch(text) else None


def _typed(form: FormData, name: str) -> str | None:
  """Returns the text of a field; None if the form has no such field."""
  value = form.get(name)
  return _plain(value) if isinstance(value, str) else None


def _plain(text: str) -> str:
  """Returns a text with the line feeds that it had before a browser sent it."""
  return text.replace("\r\n", "\n").replace("\r", "\n")
