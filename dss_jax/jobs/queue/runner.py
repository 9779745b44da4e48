"""The queue: starts the jobs that wait when their devices are free, and watches those that run.

All that it knows is in the store and in the jobs' lock files, so a server that was killed goes on
where it was. A job's process does not end with the server; the next server watches it.
"""

import contextlib
import datetime
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping

from dss_jax.errors import UserError
from dss_jax.jobs.devices import Need
from dss_jax.jobs.encryption.working_folder import LOG, is_private
from dss_jax.jobs.queue.worker_lock import FILE, holder, try_lock, write_holder
from dss_jax.jobs.service import JobService
from dss_jax.jobs.settings import DeviceSet, Quota
from dss_jax.jobs.store import CANCELLED_ERROR, ENDED, STARTED, Job
from dss_jax.progress import say
from dss_jax.storage import locks
from dss_jax.storage.atomic import make_folder, withdraw
from dss_jax.storage.sealed import SUFFIX

_POLL_SECONDS = 0.5
_TIDY_SECONDS = 3600.0
_LOCK_FILE = "server.lock"


@contextlib.contextmanager
def locked(root: pathlib.Path) -> Iterator[None]:
  """Holds the root folder for one server; raises UserError if another one has it."""
  refusal = "another server runs its jobs; use that one, or give another folder"
  with locks.locked(root / _LOCK_FILE, f"--root {root}: {refusal}"):
    yield


class Runner:
  """Runs the jobs of a service; one at a time for each root."""

  def __init__(self, service: JobService, worker: str = "dss_jax.jobs.queue.worker"):
    """Opens the queue.

    Args:
      worker: the module that is a job's process.
    """
    self._worker = worker
    # Of the jobs; the server changes its own.
    self._environment = dict(os.environ)
    self._service = service
    self._store = service.store
    # The processes that this server started, so that none of them stays a zombie.
    self._children: dict[str, subprocess.Popen[bytes]] = {}
    # When a job's process was told to stop.
    self._told: dict[str, float] = {}
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

  def start(self) -> None:
    self._service.private.remove_students()
    self._thread.start()

  def stop(self) -> None:
    """Ends the watching; the jobs go on."""
    self._end.set()
    self._thread.join()

  def _run(self) -> None:
    tidied = -_TIDY_SECONDS
    while not self._end.is_set():
      try:
        self.tick()
        if time.monotonic() - tidied >= _TIDY_SECONDS:
          self.tidy()
          tidied = time.monotonic()
      # A full disk, say: what failed is tried again.
      except Exception:
        traceback.print_exc()
      self._end.wait(_POLL_SECONDS)

  def tick(self) -> None:
    """Looks at every job that has not ended once."""
    started = self._store.in_states(STARTED)
    for job in started:
      self._watch(job)
    self._start_waiting()
    self._remove_left()
    for name in self._children.keys() - {job.name for job in started}:
      if self._children[name].poll() is not None:
        del self._children[name]

  def _watch(self, job: Job) -> None:
    folder = self._service.folder(job)
    make_folder(folder)
    lock = try_lock(folder / FILE)
    if lock is None:
      if job.state == "CANCELLING":
        self._tell_to_stop(job)
      return
    try:
      # Nobody runs it now; its process may have ended it since it was read.
      current = self._store.get(job.name)
      if current is None or current.has_ended:
        return
      self._told.pop(job.name, None)
      if current.state == "CANCELLING":
        self._store.change(job.name, ("CANCELLING",), state="CANCELLED", error=CANCELLED_ERROR)
      else:
        self._start(current, lock)
    finally:
      os.close(lock)

  def _start(self, job: Job, lock: int) -> None:
    """Starts the process of a job, for the first time or again."""
    account = self._service.settings.service_accounts.get(job.account or "")
    sets = {each.name: each for each in self._service.settings.device_sets}
    device_set = sets.get(job.device_set or "")
    if device_set is None or (account is None and job.account):
      what = f"serviceAccount {job.account}" if device_set else f"device set {job.device_set}"
      self._fail(job, 9, f"the {what} is no longer configured here")
      return
    device_lock = try_lock(self._lock_of(device_set))
    if device_lock is None:
      # The process of the job before is about to end.
      return
    try:
      if self._may_start(job):
        self._spawn(job, device_set, {} if account is None else account.environment,
                    lock, device_lock)  # fmt: skip
    finally:
      os.close(device_lock)

  def _may_start(self, job: Job) -> bool:
    """Returns whether a job may be started; one that ends too often at the same place fails."""
    if job.name not in self._children and holder(self._service.folder(job)) is None:
      # It has never run: the last server ended before it could start the process.
      return True
    progress = self._progress(job)
    restarts = job.restarts + 1 if progress == job.progress else 1
    if restarts > self._service.settings.restarts:
      self._fail(
        job,
        13,
        f"the job's process ended {restarts} times without progress; the job's log may say why",
      )
      return False
    say(f"{job.name}: its process ended; it goes on from what is saved")
    changes = {"restarts": restarts, "progress": progress}
    return self._store.change(job.name, ("PENDING", "RUNNING"), **changes)

  def _fail(self, job: Job, code: int, message: str) -> None:
    error = {"code": code, "message": message}
    self._store.change(job.name, ("PENDING", "RUNNING"), state="FAILED", error=error)

  def _progress(self, job: Job) -> str:
    """Returns how far a job is: tasks that ended, the newest checkpoint, answers of the teacher."""
    ended = sum(task.end_time is not None for task in self._store.tasks(job.name))
    model_dir = self._service.folder(job) / "model"
    names = [path.name.removesuffix(SUFFIX) for path in model_dir.glob("checkpoints/*")]
    steps = [int(name) for name in names if name.isdecimal()]
    answers = sum(path.stat().st_size for path in model_dir.glob("annotated*") if path.is_file())
    return f"{ended}/{max(steps, default=0)}/{answers}"

  def _start_waiting(self) -> None:
    started = self._store.in_states(STARTED)
    busy = {job.device_set for job in started}
    for job in self._store.in_states(("QUEUED",)):
      need = Need(job.plan["platform"], job.plan["devices"])
      fitting = self._service.device_sets(job.accelerator, job.location, need)
      unused = (each for each in fitting if each.name not in busy)
      free = next((each for each in unused if self._is_free(each)), None)
      if free is None or not self._is_within_quota(job, started):
        continue
      if not self._store.change(job.name, ("QUEUED",), state="PENDING", device_set=free.name):
        continue
      busy.add(free.name)
      started.append(job)
      current = self._store.get(job.name)
      if current is not None:
        self._watch(current)

  def _is_within_quota(self, job: Job, started: list[Job]) -> bool:
    return all(
      sum(_counts(quota, other) for other in started) < quota.jobs
      for quota in self._service.settings.quotas
      if _counts(quota, job)
    )

  def _spawn(
    self,
    job: Job,
    device_set: DeviceSet,
    account: Mapping[str, str],
    lock: int,
    device_lock: int,
  ) -> None:
    """Starts the process of a job, which inherits the locks."""
    private = {}
    if is_private(job):
      try:
        private = self._service.private.prepare(job)
      except UserError as error:
        self._fail(job, 9, str(error))
        return
    write_holder(lock, None)
    command = [sys.executable, "-m", self._worker, str(self._service.root), job.name]
    with (self._service.working_folder(job) / LOG).open("ab") as log:
      self._children[job.name] = subprocess.Popen(
        [*command, str(lock), str(device_lock)],
        env={**self._environment, **account, **device_set.environment, **private},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        # Signals to the server and its terminal are not for the job.
        start_new_session=True,
        pass_fds=(lock, device_lock),
      )

  def _remove_left(self) -> None:
    """Removes the folders in memory of jobs that run no more."""
    private = self._service.private
    if not (left := private.left({job.folder for job in self._store.in_states(STARTED)})):
      return
    jobs = {job.folder: job for job in self._store.newest()}
    for name in left:
      job = jobs.get(name)
      # A job that has just ended may still have its process.
      lock = None if job is None else try_lock(self._service.folder(job) / FILE)
      if job is None or lock is not None:
        private.remove(name, job)
      if lock is not None:
        os.close(lock)

  def _lock_of(self, device_set: DeviceSet) -> pathlib.Path:
    return self._service.root / f"device-set-{device_set.name}.lock"

  def _is_free(self, device_set: DeviceSet) -> bool:
    """Returns whether no process has the devices, not even one whose job has just ended."""
    lock = try_lock(self._lock_of(device_set))
    if lock is not None:
      os.close(lock)
    return lock is not None

  def _tell_to_stop(self, job: Job) -> None:
    """Asks the process of a job to save and end; kills it if it takes too long."""
    process = holder(self._service.folder(job))
    if process is None:
      # It has just been started, and will see that it is cancelled.
      return
    try:
      if job.name not in self._told:
        self._told[job.name] = time.monotonic()
        os.kill(process, signal.SIGTERM)
      elif time.monotonic() > self._told[job.name] + self._service.settings.cancel_seconds:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
      pass

  def tidy(self) -> None:
    """Deletes what is past its retention, and folders whose jobs were deleted."""
    days = self._service.settings.retention_days
    if days is not None:
      oldest = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
      for job in self._store.in_states(ENDED):
        ended = datetime.datetime.fromisoformat(job.end_time or job.update_time)
        if ended < oldest:
          self._service.delete([job.name])
      self._service.uploads.tidy(oldest, self._service.paths_in_use())
    folders = pathlib.Path(self._service.root / "jobs")
    if folders.is_dir():
      # Listed first: a job is in the store before it has a folder.
      found = [path for path in folders.iterdir() if not path.name.startswith(".")]
      known = self._store.folders()
      for path in found:
        if path.name not in known:
          withdraw(path)


def _counts(quota: Quota, job: Job) -> bool:
  """Returns whether a job is one of those that a quota limits."""
  is_of_region = quota.region in (None, job.location)
  return is_of_region and quota.accelerator in (None, job.accelerator)
