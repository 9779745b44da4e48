"""A job: its tasks, log and curves as they come, and what can be done with it."""

import datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute

from dss_jax.console.console import HOME, Console, redirect
from dss_jax.console.job_list import KINDS, SECTION
from dss_jax.console.job_paths import JOB, job_of
from dss_jax.jobs.api.job_stream import watch
from dss_jax.jobs.bodies.job_config import read_config
from dss_jax.jobs.bodies.schema import parameter_values
from dss_jax.jobs.encryption.working_folder import LOG
from dss_jax.jobs.google_errors import without_places
from dss_jax.jobs.queue.job_files import curves, new_lines, newest, tail
from dss_jax.jobs.store import Job, Task, now
from dss_jax.storage.sealed import SealedError

# The metrics of the hosted service: of each, the training's and the evaluation's.
CHARTS = (
  ("Loss", "train_total_loss", "eval_total_loss"),
  (
    "Share of right next tokens",
    "train_fraction_of_correct_next_step_preds",
    "eval_fraction_of_correct_next_step_preds",
  ),
  ("Predicted tokens", "train_num_predictions", "eval_num_predictions"),
)
METRICS = [name for _, *names in CHARTS for name in names]
_TITLES = {
  "validate": "Check the data",
  "annotate": "Ask the teacher",
  "review": "Review the rationales",
  "tune": "Train the student",
  "evaluate": "Evaluate the student",
  "upload-model": "Register the model",
}


class JobPages:
  """The pages of jobs; their paths are the jobs' names in the API."""

  def __init__(self, console: Console):
    self._console = console
    self._service = console.service

  def routes(self) -> list[BaseRoute]:
    console, path = self._console, JOB
    return [
      console.show(path + ":watch", self._watch),
      console.show(path + ":curves", self._curves),
      console.show(path + ":log", self._log),
      console.show(path + ":state", self._state),
      console.act(path + ":cancel", self._cancel),
      console.act(path + ":delete", self._delete),
      console.show(path, self._show),
    ]

  def _show(self, request: Request) -> Response:
    job = job_of(self._service, request)
    try:
      log, place, is_cut = tail(self._service, job, LOG)
    # Its key is not there; what the store says can be shown.
    except SealedError as error:
      log, place, is_cut = [str(error)], 0, False
    return self._console.page(
      request,
      "job.html",
      section=SECTION,
      log=[without_places(line, self._service) for line in log],
      log_place=place,
      is_log_cut=is_cut,
      **self._values(job),
    )

  def _state(self, request: Request) -> Response:
    return self._console.page(
      request, "job_state.html", **self._values(job_of(self._service, request))
    )

  def _values(self, job: Job) -> dict[str, Any]:
    """Returns what moves while a job runs."""
    made = job.result or {}
    config = read_config(job.config)
    uploads = {each.uri: each for each in self._service.uploads.list(job.project)}
    return {
      "total_steps": config.train_steps,
      "data": [
        {"title": title, "uri": uri, "upload": uploads.get(uri)}
        for title, path in (
          ("Training data", config.data.dataset),
          ("Evaluation data", config.data.eval_dataset),
        )
        if path is not None and (uri := job.plan["uris"].get(path))
      ],
      "job": job,
      "kind": KINDS[job.kind],
      "url": f"{HOME}/{job.name}",
      "tasks": [_task(task) for task in self._service.store.tasks(job.name)],
      "parameters": parameter_values(job.request.get("runtimeConfig", {})),
      "model": f"{made['model']}@{made['version']}" if made else "",
      "took": _seconds(job.start_time, job.end_time or now()),
      "newest": self._newest(job),
      "charts": CHARTS,
    }

  def _newest(self, job: Job) -> dict[str, tuple[int, float]]:
    try:
      return newest(self._service, job, METRICS)
    except SealedError:
      return {}

  def _curves(self, request: Request) -> Response:
    job = job_of(self._service, request)
    found, place = curves(self._service, job, METRICS)
    return JSONResponse({"curves": found, "place": place})

  async def _watch(self, request: Request) -> Response:
    job = await run_in_threadpool(job_of, self._service, request)
    after = request.headers.get("last-event-id") or request.query_params.get("after", "")
    return watch(self._service, job, after)

  def _log(self, request: Request) -> Response:
    _, found = new_lines(self._service, job_of(self._service, request), LOG, 0)
    lines = (without_places(line, self._service) + "\n" for line, _ in found)
    return StreamingResponse(lines, media_type=PlainTextResponse.media_type)

  def _cancel(self, request: Request, form: FormData) -> Response:
    job = self._service.cancel(job_of(self._service, request).name)
    return redirect(f"{HOME}/{job.name}")

  def _delete(self, request: Request, form: FormData) -> Response:
    job = job_of(self._service, request)
    self._service.delete([job.name])
    return redirect(f"{HOME}/projects/{job.project}/jobs")


def _task(task: Task) -> dict[str, Any]:
  seconds = None
  if task.start_time is not None:
    seconds = _seconds(task.start_time, task.end_time or now())
  return {
    "title": _TITLES.get(task.name, task.name),
    "name": task.name,
    "state": task.state,
    "seconds": seconds,
    "error": (task.error or {}).get("message", ""),
    "notes": _notes(task),
  }


def _notes(task: Task) -> list[str]:
  """Returns what a task says of itself when it has ended."""
  figures, metadata = task.metadata.get("figures") or {}, task.metadata
  notes = []
  if figures:
    notes.append(f"{figures['with_rationale']:,} of {figures['rows']:,} rows have a rationale")
    if figures["answers"]:
      notes.append(f"{figures['parsed']:,} rows have an answer that parses")
  if review := metadata.get("review"):
    notes.append(f"{review['edited']:,} rows edited, {review['left_out']:,} left out")
  if "best_step" in metadata:
    stopped = ", stopped early" if metadata.get("stopped_early") else ""
    notes.append(f"{metadata['steps']:,} steps{stopped}")
    if metadata["best_step"] is not None:
      notes.append(f"best at step {metadata['best_step']:,}")
  if "exact_match" in metadata:
    notes.append(f"{metadata['rows']:,} rows, exact match {metadata['exact_match']:.1%}")
  return notes


def _seconds(start: str | None, end: str) -> float | None:
  if start is None:
    return None
  begin, finish = datetime.datetime.fromisoformat(start), datetime.datetime.fromisoformat(end)
  return (finish - begin).total_seconds()
