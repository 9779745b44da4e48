"""Locks on files. They end with the process that holds them, however it ends."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from dss_jax.errors import UserError
from dss_jax.storage.atomic import writing


def try_lock(file: IO[Any] | int) -> bool:
  """Returns whether an open file is now locked, until it is closed; False if it was already.

  Raises:
    OSError: the file system has no locks.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


@contextlib.contextmanager
def locked(path: pathlib.Path, refusal: str | None = None) -> Iterator[None]:
  """Creates the file if needed and holds its lock.

  Args:
    refusal: the sentence if another process holds the lock; None waits for that process.

  Raises:
    UserError: with the refusal, or since the file cannot be written or locked.
  """
  with writing(path):
    file = path.open("ab")
  with file:
    with writing(path):
      if refusal is None:
        fcntl.flock(file, fcntl.LOCK_EX)
      elif not try_lock(file):
        raise UserError(refusal)
    yield
