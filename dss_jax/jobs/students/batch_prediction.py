"""Batch predictions: the lines of files are answered in the background, one job at a time.

Its files appear whole, at its end. A job that a stopped server left goes on after the rows that
its journal has (batch_journal.py), to the same files.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import pathlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.google_errors import failure
from dss_jax.jobs.names import Name, parse, published, split
from dss_jax.jobs.resources import Resources
from dss_jax.jobs.service import JobService
from dss_jax.jobs.store import now
from dss_jax.jobs.students.batch_journal import BatchJournal
from dss_jax.jobs.students.published import answering
from dss_jax.jobs.students.student_pool import StudentPool, key_of
from dss_jax.jobs.students.versions import find_version
from dss_jax.serving.errors import QueueFull
from dss_jax.serving.generation import Answer, Generation, Writing, check
from dss_jax.serving.models import ServedModel
from dss_jax.serving.vertex_api import prediction_of
from dss_jax.serving.vertex_schemas import parse_predict
from dss_jax.storage.atomic import atomic_target, make_folder, remove, writing
from dss_jax.storage.files import join, open_text
from dss_jax.storage.sealed import SUFFIX, DataKey, Header, read_header, sealing
from dss_jax.student.registry import Version
from dss_jax.student.sealed_student import SEALED

KIND = "batchPredictionJobs"
ENDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED")
# Of the journals, below the root.
_FOLDER = "batches"
# So many lines are asked at a time; other clients' questions come between.
_WINDOW = 32
# The hosted service's limit.
_MAX_PROMPT = 30_000
_MAX_LINE = 2**20
_RETRY_SECONDS = 1.0


class BatchPredictions:
  """Runs the batch predictions of a server."""

  def __init__(self, service: JobService, resources: Resources, pool: StudentPool):
    self._service = service
    self._resources = resources
    self._pool = pool
    self._wake = asyncio.Event()
    self._running: tuple[Name, asyncio.Task[None]] | None = None

  def wake(self) -> None:
    """Says that there is a new job."""
    self._wake.set()

  def cancel(self, name: Name) -> None:
    """Cancels a job; one that has ended stays as it is."""

    def change(job: dict[str, Any]) -> None:
      if job["state"] == "JOB_STATE_PENDING":
        _end(job, "JOB_STATE_CANCELLED", ApiError("CANCELLED", "the job was cancelled"))
      elif job["state"] == "JOB_STATE_RUNNING":
        job.update(state="JOB_STATE_CANCELLING", updateTime=now())

    self._resources.change(name, change)
    if self._running is not None and self._running[0] == name:
      self._running[1].cancel()

  @contextlib.asynccontextmanager
  async def running(self) -> AsyncIterator[None]:
    """Runs jobs within the context."""
    worker = asyncio.create_task(self._work())
    try:
      yield
    finally:
      worker.cancel()
      with contextlib.suppress(asyncio.CancelledError):
        await worker

  def version_of(self, job: Mapping[str, Any], project: str) -> Version:
    """Returns the version that answers a job; raises ApiError."""
    registry, own = self._service.registry(project), job.get("modelVersionId")
    if (name := published(job["model"])) is not None:
      reference = answering(self._service, project, name).reference
    else:
      reference = parse(job["model"], "models", project, "model").id
    # What an alias means may have changed since the job was created.
    return find_version(registry, reference if own is None else f"{_plain(reference)}@{own}")

  async def _work(self) -> None:
    self._remove_journals()
    while True:
      self._wake.clear()
      left = [each for each in self._resources.list(KIND) if each["state"] not in ENDED]
      for job in sorted(left, key=lambda each: each["createTime"]):
        name = split(job["name"])
        task = asyncio.create_task(self._run(name))
        self._running = (name, task)
        try:
          await asyncio.wait([task])
        finally:
          self._running = None
          task.cancel()
      await self._wake.wait()

  async def _run(self, name: Name) -> None:
    """Runs one job to its end; cancelled with the server, it is left to be begun again."""
    error: ApiError | None = None
    try:
      job = self._resources.change(name, _start)
      if job["state"] == "JOB_STATE_RUNNING":
        await self._answer(name, job)
    except asyncio.CancelledError:
      if self._resources.get(name)["state"] != "JOB_STATE_CANCELLING":
        raise
    # Whatever a line, a file or a device raises ends the job, not the server.
    except Exception as caught:
      error = failure(caught, self._service)
    self._resources.change(name, lambda job: _finish(job, error))
    self._remove_journals()

  async def _answer(self, name: Name, job: Mapping[str, Any]) -> None:
    version = self.version_of(job, name.project)
    prefix = job["outputConfig"]["gcsDestination"]["outputUriPrefix"].rstrip("/")
    own = "".join(each if each.isalnum() else "_" for each in job["createTime"])
    uri = f"{prefix}/prediction-{version.name}-{own}"
    folder = self._service.resolve(uri, "outputConfig.gcsDestination.outputUriPrefix", name.project)
    files = [
      self._service.resolve(each, "inputConfig.gcsSource.uris", name.project)
      for each in job["inputConfig"]["gcsSource"]["uris"]
    ]
    make_folder(folder)
    output_key = self._key(name, job)
    key = output_key
    if key is None and version.is_sealed:
      # What an encrypted student writes is the user's; the server's copy stays encrypted.
      header = read_header(version.folder / SEALED)
      key = self._service.private.keyring.unlock_for(name.project)(header)
    identity = json.dumps([key_of(name.project, version), job.get("modelParameters")])
    journal = await asyncio.to_thread(BatchJournal, self._journal(name), key)
    with contextlib.closing(journal):
      windows = _windows(files)
      digests = (_digest(identity, window) for window in windows)
      if not await asyncio.to_thread(journal.resume, digests):
        windows = _windows(files)
      while window := await asyncio.to_thread(next, windows, None):
        good = [instance for instance, problem in window if problem is None]
        bad = [(instance, problem) for instance, problem in window if problem is not None]
        # Each time: it may have made room for a student of other requests.
        own = await self._pool.ready(name.project, version)
        model, _ = self._pool.models.get(own)
        answers = [
          _json({"instance": instance, "predictions": predictions, "status": ""})
          for instance, predictions in await _predictions(model, good, job.get("modelParameters"))
        ]
        errors = [
          _json({"instance": instance, "error": {"code": 3, "message": problem}})
          for instance, problem in bad
        ]
        journal.add(_digest(identity, window), answers, errors)
      await asyncio.to_thread(_write, folder, journal, output_key)
      counts = journal.counts

    def report(value: dict[str, Any]) -> None:
      value["outputInfo"] = {"gcsOutputDirectory": uri}
      value["completionStats"] = dict(
        zip(("successfulCount", "failedCount"), map(str, counts), strict=True)
      )

    self._resources.change(name, report)

  def _key(self, name: Name, job: Mapping[str, Any]) -> DataKey | None:
    """Returns the data key of a job's files; None if they are not to be encrypted."""
    wrapped = job.get("wrappedKey")
    if wrapped is None:
      return None
    header = Header("file", name.id, "", job["encryptionSpec"]["kmsKeyName"], wrapped)
    return self._service.private.keyring.unlock_for(name.project)(header)

  def _journal(self, name: Name) -> pathlib.Path:
    return self._service.root / _FOLDER / f"{name.id}.jsonl"

  def _remove_journals(self) -> None:
    """Removes the journals of jobs that have ended, or are not there any more."""
    left = {
      split(each["name"]).id for each in self._resources.list(KIND) if each["state"] not in ENDED
    }
    for path in (self._service.root / _FOLDER).glob("*"):
      if path.name.partition(".")[0] not in left:
        remove(path)


def _write(folder: str, journal: BatchJournal, key: DataKey | None) -> None:
  """Writes a job's files from its journal."""
  for kind, name in enumerate(("predictions_0001.jsonl", "errors_0001.jsonl")):
    if not kind or journal.counts[kind]:
      place = join(folder, name)
      opened = atomic_target(place) if key is None else sealing(f"{place}{SUFFIX}", key, name)
      with opened as file, writing(place):
        for line in journal.lines(kind):
          file.write(line)


def parameters_of(job: Mapping[str, Any]) -> Generation:
  """Checks a job's modelParameters; raises BadRequest."""
  return _generation(["a prompt"], job.get("modelParameters"))


def _generation(prompts: Sequence[str], parameters: Any) -> Generation:
  instances = [{"content": prompt} for prompt in prompts]
  return parse_predict({"instances": instances, "parameters": parameters or {}})


async def _predictions(
  model: ServedModel, instances: Sequence[Mapping[str, Any]], parameters: Any
) -> list[tuple[Mapping[str, Any], list[dict[str, Any]]]]:
  """Returns each instance with the student's predictions."""
  if not instances:
    return []
  generation = _generation([_prompt(each) for each in instances], parameters)
  check(generation, model.student.kinds)
  while True:
    try:
      writing = Writing(model.batcher, generation, model.student.max_output_tokens)
      break
    except QueueFull:
      await asyncio.sleep(_RETRY_SECONDS)
  try:
    answers: list[list[Answer]] = await writing.answers()
  finally:
    writing.cancel()
  return [
    (instance, [prediction_of(answer, generation, model) for answer in of_prompt])
    for instance, of_prompt in zip(instances, answers, strict=True)
  ]


def _lines(files: Sequence[str]) -> Iterator[tuple[Any, str | None]]:
  """Yields the instance of each line, and what is wrong with it."""
  for position, path in enumerate(files):
    with open_text(path) as file:
      number = 0
      while line := file.readline(_MAX_LINE):
        number += 1
        # The rest of a line that is too long.
        while not line.endswith("\n") and (rest := file.readline(_MAX_LINE)):
          line = line[:_MAX_LINE] + rest[-1:]
        if line.strip():
          instance, problem = _instance(line)
          place = f"line {number}" if len(files) == 1 else f"file {position + 1}, line {number}"
          yield instance, problem and f"{place}: {problem}"


def _windows(files: Sequence[str]) -> Iterator[list[tuple[Any, str | None]]]:
  """Yields so many lines as are asked at a time."""
  lines = _lines(files)
  while window := list(itertools.islice(lines, _WINDOW)):
    yield window


def _digest(identity: str, window: list[tuple[Any, str | None]]) -> str:
  """Returns a digest of the student that answers and of the lines."""
  return hashlib.sha256(json.dumps([identity, window]).encode("ascii")).hexdigest()[:32]


def _instance(line: str) -> tuple[Any, str | None]:
  try:
    instance = json.loads(line)
    _json(instance)
  except (ValueError, RecursionError):
    return line[:200].encode("utf-8", "replace").decode(), "is not JSON"
  if not isinstance(instance, dict) or not isinstance(_prompt(instance), str):
    return instance, 'has no "prompt"; write {"prompt": "..."}'
  if not _prompt(instance).strip() or len(_prompt(instance)) > _MAX_PROMPT:
    return instance, f"the prompt must have 1 to {_MAX_PROMPT:,} characters"
  return instance, None


def _plain(reference: str) -> str:
  """Returns the name of NAME@VERSION."""
  return reference.partition("@")[0]


def _prompt(instance: Mapping[str, Any]) -> Any:
  return instance.get("prompt", instance.get("content"))


def _json(value: Any) -> str:
  """Returns a line of JSON; raises ValueError for what is not Unicode, or no number."""
  text = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
  text.encode("utf-8")
  return text


def _start(job: dict[str, Any]) -> None:
  if job["state"] in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING"):
    job.update(state="JOB_STATE_RUNNING", startTime=job.get("startTime") or now(), updateTime=now())


def _finish(job: dict[str, Any], error: ApiError | None) -> None:
  if job["state"] == "JOB_STATE_CANCELLING":
    _end(job, "JOB_STATE_CANCELLED", ApiError("CANCELLED", "the job was cancelled"))
  elif job["state"] not in ENDED:
    _end(job, "JOB_STATE_FAILED" if error else "JOB_STATE_SUCCEEDED", error)


def _end(job: dict[str, Any], state: str, error: ApiError | None) -> None:
  moment = now()
  job.update(state=state, endTime=moment, updateTime=moment)
  if error is not None:
    job["error"] = {"code": error.grpc_code, "message": str(error)}
