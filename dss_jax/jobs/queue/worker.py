"""The process of one job: `python -m dss_jax.jobs.queue.worker ROOT NAME LOCK LOCK`.

Runs the job's tasks one after the other, with the code of the command line, and writes each
change of state. What a killed worker had begun, the next one resumes: the annotation from its
journal, the training from its newest checkpoint.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Protocol

from dss_jax import terminal
from dss_jax.annotation.review import EDITS, REVIEWED, approved_review
from dss_jax.jobs.api_error import CODES
from dss_jax.jobs.encryption.working_folder import working_folder
from dss_jax.jobs.queue.worker_lock import write_holder
from dss_jax.jobs.store import CANCELLED_ERROR, REVIEW, Job, Store, now
from dss_jax.storage.sealed import SUFFIX, DataKey, SealedError, sealing

EVALUATION, EVALUATION_PAGE = "evaluation.json", "evaluation.html"
_PAGE_ROWS = 2000
# Of the run's folder, what a job's output folder gets a copy of.
_ANNOTATED = "annotated.jsonl"
_RESULTS = (_ANNOTATED, EDITS, REVIEWED, "metrics.jsonl", "model.json")
# Of an encrypted job's tasks, what the store may have in plain.
_PUBLIC = ("steps", "best_step", "stopped_early", "output:model_resource_name", "result")


class _Stopped(SystemExit):
  """A signal came while no training step was taken; asyncio lets only such exceptions pass."""


class JobPaused(SystemExit):
  """The job waits for people; its process ends."""


class JobFailed(Exception):
  """The job cannot go on.

  Attributes:
    kind: of the error, as google.rpc.Code names it.
  """

  def __init__(self, kind: str, message: str):
    super().__init__(message)
    self.kind = kind


class Work(Protocol):
  """What a job does."""

  def run(self) -> dict[str, Any]:
    """Returns the job's result; raises JobFailed or JobPaused."""
    ...


def main(
  root: str, name: str, lock: str, device_lock: str, *, work: Callable[..., Work] | None = None
) -> None:
  """Runs a job to its end, or until a signal stops it.

  Args:
    lock, device_lock: the numbers of the open lock files of the job and of its device set, which
      this process inherited.
    work: makes the job's work from root, store and job; by default its tasks.
  """
  for handle in (lock, device_lock):
    # Programs that this one starts must not hold the locks after its end.
    os.set_inheritable(int(handle), False)
  write_holder(int(lock), os.getpid())
  signal.signal(signal.SIGTERM, _stop)
  terminal.prepare()
  store = Store(pathlib.Path(root))
  job = store.get(name)
  if job is None:
    return
  started = {"state": "RUNNING", "start_time": job.start_time or now()}
  try:
    if not store.change(name, ("PENDING", "RUNNING"), **started):
      # It has ended, or it was cancelled before it began.
      store.change(name, ("CANCELLING",), state="CANCELLED", error=CANCELLED_ERROR)
      return
    result = (work or _Tasks)(pathlib.Path(root), store, job).run()
    # A job whose last task is complete has succeeded, even if it was to be cancelled.
    store.change(name, ("RUNNING", "CANCELLING"), state="SUCCEEDED", result=result)
  except _Stopped:
    # Otherwise whoever stopped it may want it to go on: the server starts it again.
    store.change(name, ("CANCELLING",), state="CANCELLED", error=CANCELLED_ERROR)
  except JobPaused:
    # The next process is none that takes over from one that was killed.
    write_holder(int(lock), None)
    if not store.change(name, ("RUNNING",), state="PAUSED", device_set=None):
      store.change(name, ("CANCELLING",), state="CANCELLED", error=CANCELLED_ERROR)
  except JobFailed as error:
    print(f"the job failed: {error}", file=sys.stderr, flush=True)
    code = CODES[error.kind][0]
    failure = {"code": code, "message": str(error)}
    store.change(name, ("RUNNING", "CANCELLING"), state="FAILED", error=failure)


def _stop(number: int, frame: Any) -> NoReturn:
  raise _Stopped


class _Tasks:
  """The tasks of a job."""

  def __init__(self, root: pathlib.Path, store: Store, job: Job):
    from dss_jax.jobs.bodies.job_config import read_config

    self._root = root
    self._store = store
    self._job = job
    self._folder = root / "jobs" / job.folder
    self._key: DataKey | None = None
    config = read_config(job.config)
    assert config.display_name is not None
    self._name = config.display_name
    # The registration is a task of its own.
    self._config = dataclasses.replace(config, display_name=None)

  def run(self) -> dict[str, Any]:
    """Runs the tasks that have not ended yet; returns the result of the last one."""
    from dss_jax.errors import UserError

    try:
      with working_folder(self._root, self._job) as (folder, key):
        self._folder, self._key = folder, key
        self._config = dataclasses.replace(self._config, model_dir=str(folder / "model"))
        return self._run()
    # Of the folder itself: its key, or the room for it.
    except UserError as error:
      raise JobFailed("FAILED_PRECONDITION", self._without_paths(str(error))) from None

  def _run(self) -> dict[str, Any]:
    from dss_jax.storage.cache import keep_compiled_programs

    keep_compiled_programs()
    work: dict[str, Callable[[], dict[str, Any] | None]] = {
      "validate": self._validate,
      "annotate": self._annotate,
      REVIEW: self._review,
      "tune": self._tune,
      "evaluate": self._evaluate,
      "upload-model": self._upload,
    }
    for task in self._store.tasks(self._job.name):
      if task.state in ("SUCCEEDED", "SKIPPED"):
        continue
      self._change(task.name, "RUNNING")
      with self._failing(task.name):
        metadata = work[task.name]()
      if self._key is not None and metadata is not None:
        metadata = {key: value for key, value in metadata.items() if key in _PUBLIC}
      self._change(task.name, "SKIPPED" if metadata is None else "SUCCEEDED", metadata=metadata)
    last = self._store.tasks(self._job.name)[-1]
    return last.metadata["result"]

  def _change(self, task: str, state: str, **values: Any) -> None:
    self._store.change_task(self._job.name, task, state, **values)

  @contextlib.contextmanager
  def _failing(self, task: str) -> Iterator[None]:
    """Turns what ends a task into the job's failure, with a sentence for the client."""
    from dss_jax.errors import Preempted, TrainingDiverged, UserError

    try:
      yield
      return
    except Preempted as error:
      print(error, file=sys.stderr, flush=True)
      raise _Stopped from None
    except SealedError as error:
      failure = JobFailed("FAILED_PRECONDITION", self._without_paths(str(error)))
    except UserError as error:
      failure = JobFailed("INVALID_ARGUMENT", self._without_paths(str(error)))
    except TrainingDiverged as error:
      failure = JobFailed("FAILED_PRECONDITION", self._without_paths(str(error)))
    except Exception as error:
      traceback.print_exc()
      failure = JobFailed(
        "INTERNAL", f"the task {task} failed with {type(error).__name__}; the job's log says why"
      )
    if self._key is not None and failure.kind != "FAILED_PRECONDITION":
      # A sentence about rows may quote them.
      print(failure, file=sys.stderr, flush=True)
      failure = JobFailed(
        failure.kind, f"the task {task} failed; the job's log, which is encrypted, says why"
      )
    said = {"code": CODES[failure.kind][0], "message": str(failure)}
    self._change(task, "FAILED", error=said)
    raise failure

  def _without_paths(self, message: str) -> str:
    """Returns a message with the request's URIs in place of this machine's paths."""
    for path, uri in self._job.plan["uris"].items():
      message = message.replace(path, uri)
    return message.replace(str(self._folder), self._job.name)

  def _validate(self) -> dict[str, Any]:
    from dss_jax.language_models.tuning import check_run
    from dss_jax.parallel.mesh import make_mesh

    make_mesh(self._config.mesh, self._config.batch_size)
    if self._key is not None:
      self._check_memory()
    check_run(dataclasses.replace(self._config, display_name=self._name))
    return {}

  def _check_memory(self) -> None:
    """Raises SealedError if an encrypted job's checkpoints cannot fit into its folder in memory."""
    from dss_jax.data.vocabularies import T5_VOCABULARY, load_vocabulary
    from dss_jax.progress import say
    from dss_jax.storage.memory import free_bytes
    from dss_jax.student.model_dir import with_vocab_size
    from dss_jax.train.step import parameter_count

    vocabulary = load_vocabulary(self._config.data.vocabulary or T5_VOCABULARY)
    parameters = parameter_count(with_vocab_size(self._config, vocabulary).model)
    # The newest, the best, and the one that is written; AdamW has two moments for each weight.
    needed = 3 * 4 * parameters * (3 if self._config.optimizer.name == "adamw" else 1)
    free = free_bytes(self._folder)
    say(f"{free / 1e9:.1f} GB of memory are free, checkpoints need {needed / 1e9:.1f} GB")
    if free < needed:
      raise SealedError(
        f"an encrypted job of this student needs {needed / 1e9:.1f} GB of memory for checkpoints,"
        f" and {free / 1e9:.1f} GB are free; the operator's memory_folder may be made larger"
      )

  def _annotate(self) -> dict[str, Any] | None:
    from dss_jax.pipelines.annotate_stage import annotate_training_rows

    _, figures = annotate_training_rows(self._config)
    if figures is None:
      return None
    # Where it lies on this machine's disk is not the client's business.
    return {"figures": {key: value for key, value in figures.items() if key != "output"}}

  def _review(self) -> dict[str, Any]:
    review = approved_review(pathlib.Path(self._config.model_dir) / _ANNOTATED)
    if review is None:
      raise JobPaused
    return {"review": review.figures}

  def _tune(self) -> dict[str, Any]:
    from dss_jax.pipelines import distill

    card = distill.run(self._config)
    return {key: card[key] for key in ("steps", "best_step", "stopped_early", "metrics")}

  def _evaluate(self) -> dict[str, Any] | None:
    from dss_jax.evaluation.evaluate import evaluate_student, source_for
    from dss_jax.evaluation.html_report import write_report
    from dss_jax.storage.atomic import atomic_target, write_text
    from dss_jax.student.student import Student

    data = self._config.data
    if data.eval_dataset is None:
      return None
    student = Student.open(self._config.model_dir)
    source = source_for(student, data.eval_dataset, None, None, None, data.labels_as_text)
    judgement = evaluate_student(student, source, self._config.mesh)
    report = judgement.report
    write_text(self._folder / EVALUATION, json.dumps(report, indent=2) + "\n")
    with atomic_target(self._folder / EVALUATION_PAGE) as page:
      write_report(page, [judgement], report, max_rows=_PAGE_ROWS)
    return {"exact_match": report["exact_match"], "rows": report["rows"]}

  def _upload(self) -> dict[str, Any]:
    from dss_jax.jobs.students.tuned_models import publish
    from dss_jax.student.registration import register_student
    from dss_jax.student.registry import Registry

    registry = Registry(self._config.registry)
    version = register_student(self._config.model_dir, self._name, registry.root, self._key)
    endpoint = publish(self._root, registry, version, self._job)
    self._copy_results()
    job, plan = self._job, self._job.plan
    model = f"projects/{job.project}/locations/{plan['location']}/models/{version.name}"
    result = {
      "model": version.name,
      "version": version.number,
      "endpoint": endpoint,
      "location": plan["location"],
      "student": plan["student"],
    }
    return {"output:model_resource_name": f"{model}@{version.number}", "result": result}

  def _copy_results(self) -> None:
    """Copies the results to the folders that the request names."""
    from dss_jax.storage.atomic import make_folder, write_bytes
    from dss_jax.storage.files import join

    def write(place: str, content: bytes) -> None:
      if self._key is None:
        write_bytes(place, content)
        return
      with sealing(f"{place}{SUFFIX}", self._key, place.rpartition("/")[2]) as file:
        file.write(content)

    model_dir = pathlib.Path(self._config.model_dir)
    evaluation = self._folder / EVALUATION
    copies = [("output", model_dir / name) for name in _RESULTS]
    copies += [("output", evaluation), ("evaluation_output", evaluation)]
    for key, path in copies:
      folder = self._job.plan[key]
      if folder is not None and path.exists():
        target = join(folder, self._job.job_id)
        make_folder(target)
        write(join(target, path.name), path.read_bytes())


if __name__ == "__main__":
  main(*sys.argv[1:])
