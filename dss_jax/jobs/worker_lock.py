"""The lock file of a job: whoever holds it runs the job, so that nobody else does.

The server locks the file and gives it, open, to the worker that it starts. The lock lasts until
the worker ends, however it ends, and does not depend on the server. Nobody has to guess from a
process's number whether a worker lives.
"""

import contextlib
import fcntl
import os
import pathlib

FILE = "worker.lock"


def try_lock(folder: pathlib.Path) -> int | None:
  """Returns the open lock file of a job, locked; None while a worker holds it."""
  handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o600)
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(handle)
    return None
  except BaseException:
    os.close(handle)
    raise
  return handle


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
