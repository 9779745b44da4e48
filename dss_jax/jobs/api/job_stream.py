"""A job's states, log and metrics as they come, as server-sent events."""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Iterator

from starlette.responses import StreamingResponse

from dss_jax.jobs.encryption.working_folder import LOG
from dss_jax.jobs.google_errors import without_places
from dss_jax.jobs.queue.job_files import METRICS_FILE, new_lines
from dss_jax.jobs.service import JobService
from dss_jax.jobs.store import Job

_POLL_SECONDS = 0.5
# So that proxies and clients do not take a quiet job for a lost connection.
_QUIET_POLLS = 30
_FILES = {"log": LOG, "metrics": METRICS_FILE}
_ID = re.compile(r"([0-9]{1,15})\.([0-9]{1,15})")


def watch(service: JobService, job: Job, last_event_id: str) -> StreamingResponse:
  """Returns a response that goes on until the job has ended.

  The events are `state` ({"state", "tasks"}), `log` (a line of text) and `metrics` (a line of
  metrics.jsonl), with names for the server's folders. Each has an id; a client that connects again
  with the last one as Last-Event-ID gets what came after it.

  Raises UserError, before it begins, for an encrypted job whose key is not there.
  """
  with contextlib.suppress(FileNotFoundError):
    service.open_file(job, LOG).close()
  return StreamingResponse(
    _events(service, job.name, last_event_id),
    media_type="text/event-stream",
    headers={"cache-control": "no-store", "x-accel-buffering": "no"},
  )


async def _events(service: JobService, name: str, last_event_id: str) -> AsyncIterator[str]:
  match = _ID.fullmatch(last_event_id)
  places = {"log": int(match[1]), "metrics": int(match[2])} if match else dict.fromkeys(_FILES, 0)
  last_state, quiet = "", 0
  while True:
    # Read before the files, so that an ended job's last lines are sent.
    job = service.store.get(name)
    if job is None:
      return
    tasks = {task.name: task.state for task in service.store.tasks(name)}
    state = json.dumps({"state": job.state, "tasks": tasks, "error": job.error})
    quiet += 1
    for kind, file in _FILES.items():
      places[kind], lines = new_lines(service, job, file, places[kind])
      for line, place in lines:
        places[kind] = place
        quiet = 0
        yield _event(kind, without_places(line, service), places)
    if state != last_state:
      last_state, quiet = state, 0
      yield _event("state", state, places)
    if job.has_ended:
      return
    if quiet >= _QUIET_POLLS:
      quiet = 0
      yield ": the job goes on\n\n"
    await asyncio.sleep(_POLL_SECONDS)


def log_lines(service: JobService, job: Job, *, follow: bool) -> Iterator[str]:
  """Yields the lines of a job's log; with `follow`, until the job has ended."""
  place = 0
  while True:
    current = service.store.get(job.name)
    place, lines = new_lines(service, job, LOG, place)
    for line, end in lines:
      place = end
      yield line
    if not follow or current is None or current.has_ended:
      return
    time.sleep(_POLL_SECONDS)


def _event(kind: str, data: str, places: dict[str, int]) -> str:
  # A line of text may have line feeds that are none to Python's readlines.
  lines = "".join(f"data: {line}\n" for line in data.splitlines() or [""])
  return f"id: {places['log']}.{places['metrics']}\nevent: {kind}\n{lines}\n"
