"""Encrypted jobs and students as the server sees them: their keys, and their folders in memory."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Iterator
from typing import IO

from dss_jax.errors import UserError
from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.encryption.keyring import Keyring
from dss_jax.jobs.encryption.sealed_job import CACHE_FOLDERS, SealedJob
from dss_jax.jobs.encryption.working_folder import ENVIRONMENT, LOG, header_of, is_private
from dss_jax.jobs.settings import Settings
from dss_jax.jobs.store import Job
from dss_jax.storage.cache import private_environment
from dss_jax.storage.keys import unwrapped
from dss_jax.storage.memory import check_is_memory, make_private_folder
from dss_jax.storage.sealed import SUFFIX, DataKey, Header, open_sealed, read_header
from dss_jax.storage.sealed_folders import open_folder
from dss_jax.student.registry import Version
from dss_jax.student.sealed_student import SEALED, sealed_name

_STUDENT_PREFIX = ".student-"


class PrivateJobs:
  """The encrypted jobs of a server, and students that such jobs made.

  Attributes:
    keyring: the operator's keys.
    memory: the folder, on a file system in memory, of the server's plain files.
  """

  def __init__(self, root: pathlib.Path, settings: Settings):
    self._root = root
    self._settings = settings
    self.keyring = Keyring(settings.keys)
    # One folder for each server of a user, in a place that all users share.
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    self.memory = pathlib.Path(settings.memory_folder) / f"dss-jobs-{os.geteuid()}-{digest}"

  def new_key(self, name: str, project: str, owner: str) -> dict[str, str]:
    """Returns a new job's key, wrapped, for its plan; raises ApiError if it cannot be encrypted."""
    key = self.keyring.new(name, project, owner)
    try:
      self._make_memory()
    except UserError as error:
      raise ApiError("FAILED_PRECONDITION", f"kmsKeyName: {error}") from None
    return {"name": name, "wrapped": key.wrapped}

  def key_of(self, job: Job) -> DataKey:
    """Returns the data key of a job; raises SealedError without the operator's key."""
    header = header_of(job)
    return self.keyring.unlock_for(job.project)(header)

  def folder(self, job: Job) -> pathlib.Path:
    """Returns the folder in memory where an encrypted job works."""
    return self.memory / job.folder

  def prepare(self, job: Job) -> dict[str, str]:
    """Makes a job's folder in memory, with its log; returns the variables of its process.

    Raises UserError if its key or its memory is not there.
    """
    key = self.key_of(job)
    place = self.keyring.key(key.key_name, job.project).place
    self._make_memory()
    folder = self.folder(job)
    make_private_folder(folder)
    for path in folder.iterdir():
      # Of a process that was killed, the log alone says more than what is sealed.
      if path.name != LOG:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    SealedJob(folder, self._disk(job), key).open_file(LOG)
    for name in CACHE_FOLDERS:
      (folder / name).mkdir()
    told = {"folder": str(folder), "file": place.file, "plugin": place.plugin}
    return {ENVIRONMENT: json.dumps(told), **private_environment(folder)}

  def left(self, started: Collection[str]) -> list[str]:
    """Returns the names of the folders in memory but those of jobs that run."""
    return [each for each in self._names() if not each.startswith(".") and each not in started]

  def remove_students(self) -> None:
    """Removes what a killed server had opened; for the start of the next one."""
    for name in self._names():
      if name.startswith(_STUDENT_PREFIX):
        shutil.rmtree(self.memory / name, ignore_errors=True)

  def remove(self, name: str, job: Job | None) -> None:
    """Removes a folder in memory; the job's log is sealed before, if that is possible."""
    folder = self.memory / name
    if job is not None and is_private(job) and (folder / LOG).exists():
      with contextlib.suppress(UserError):
        SealedJob(folder, self._disk(job), self.key_of(job)).seal_file(LOG)
    shutil.rmtree(folder, ignore_errors=True)

  def open_file(self, job: Job, name: str) -> IO[bytes]:
    """Opens a file of an encrypted job for reading: in memory while it runs, else the sealed one.

    Raises FileNotFoundError if there is none, SealedError without the key.
    """
    self._check(job.project, header_of(job))
    with contextlib.suppress(FileNotFoundError):
      return (self.folder(job) / name).open("rb")
    path = self._disk(job) / f"{name}{SUFFIX}"
    if not path.exists():
      raise FileNotFoundError(path)
    unlock = self.keyring.unlock_for(job.project)
    with open_sealed(path, unlock, owner=job.folder, name=name) as sealed:
      return io.BytesIO(sealed.read())

  def check_student(self, project: str, version: Version) -> None:
    """Raises SealedError for an encrypted student whose key is not there, or not the project's."""
    if version.is_sealed:
      self._check(project, read_header(version.folder / SEALED))

  @contextlib.contextmanager
  def opened(self, version: Version) -> Iterator[pathlib.Path]:
    """Gives a student's folder; that of an encrypted one is in memory, until the body ends.

    Whether the project may use the key is for check_student.
    """
    if not version.is_sealed:
      yield version.folder
      return
    self._make_memory()
    with tempfile.TemporaryDirectory(prefix=_STUDENT_PREFIX, dir=self.memory) as temporary:
      folder = pathlib.Path(temporary) / "student"
      open_folder(
        version.folder / SEALED,
        self.keyring.unlock_for(None),
        folder,
        name=sealed_name(version.name),
      )
      yield folder

  def _check(self, project: str, header: Header) -> None:
    """Raises SealedError unless a project may use a key, and it is there.

    A plug-in is not asked: each question would cost a call of its KMS.
    """
    key = self.keyring.key(header.key_name, project)
    if key.file is not None:
      unwrapped(key.place.key(header.key_name), header)

  def _names(self) -> list[str]:
    # Without encrypted jobs, nothing is there, or no such place.
    with contextlib.suppress(OSError):
      return os.listdir(self.memory)
    return []

  def _make_memory(self) -> None:
    check_is_memory(self.memory.parent)
    make_private_folder(self.memory)

  def _disk(self, job: Job) -> pathlib.Path:
    return self._root / "jobs" / job.folder
