"""The lock files of jobs and device sets: whoever holds them runs the job on the devices.

The server locks the files and gives them, open, to the worker that it starts. The locks last until
the worker ends, however it ends, and do not depend on the server. Nobody has to guess from a
process's number whether a worker lives, and a job that has ended has also left its devices.
"""

import contextlib
import os
import pathlib

from dss_jax.storage import locks

FILE = "worker.lock"


def try_lock(path: pathlib.Path) -> int | None:
  """Returns the open lock file, locked; None while a worker holds it."""
  handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
  try:
    is_ours = locks.try_lock(handle)
  except BaseException:
    os.close(handle)
    raise
  if is_ours:
    return handle
  os.close(handle)
  return None


def write_holder(handle: int, process: int | None) -> None:
  """Writes the number of the process that holds the lock; None for none yet."""
  os.ftruncate(handle, 0)
  if process is not None:
    os.pwrite(handle, str(process).encode(), 0)


def holder(folder: pathlib.Path) -> int | None:
  """Returns the number of the process that holds the lock, if it has written it."""
  with contextlib.suppress(OSError, ValueError):
    return int((folder / FILE).read_text(encoding="ascii"))
  return None
