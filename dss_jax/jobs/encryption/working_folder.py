"""Where a job's process works: in its folder, or, if the job is encrypted, in memory."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator

from dss_jax.jobs.encryption.sealed_job import SealedJob
from dss_jax.jobs.store import Job
from dss_jax.storage.keys import KeyPlace, unwrapped
from dss_jax.storage.memory import forbid_core_dumps
from dss_jax.storage.sealed import DataKey, Header

LOG = "worker.log"
# Of a job's process: where its key and its folder in memory are; never the key itself.
ENVIRONMENT = "DSS_PRIVATE_JOB"


def is_private(job: Job) -> bool:
  """Returns whether a job is encrypted."""
  return job.plan.get("key") is not None


@contextlib.contextmanager
def working_folder(root: pathlib.Path, job: Job) -> Iterator[tuple[pathlib.Path, DataKey | None]]:
  """Gives the folder where a job's process works, and the key of its files if it is encrypted.

  An encrypted job works in memory, and what it writes is sealed; see SealedJob.kept.
  """
  disk = root / "jobs" / job.folder
  if not is_private(job):
    yield disk, None
    return
  forbid_core_dumps()
  told = json.loads(os.environ[ENVIRONMENT])
  key = key_of(job, KeyPlace(told["file"], told["plugin"]))
  with SealedJob(pathlib.Path(told["folder"]), disk, key).kept():
    yield pathlib.Path(told["folder"]), key


def key_of(job: Job, place: KeyPlace) -> DataKey:
  """Returns the data key of a job; raises SealedError without the operator's key."""
  header = header_of(job)
  return unwrapped(place.key(header.key_name), header)


def header_of(job: Job) -> Header:
  """Returns what the sealed files of a job say of their key."""
  return Header("file", job.folder, "", job.plan["key"]["name"], job.plan["key"]["wrapped"])
