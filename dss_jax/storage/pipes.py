"""Pipes as files: what can be read only once is copied, so that it can be read again."""

import os
import shutil
import stat
import tempfile
from typing import Any

from dss_jax.errors import UserError
from dss_jax.progress import say

STANDARD_INPUT = "-"

# Device and number of a pipe -> the copy, which is removed when the program ends.
_copies: dict[tuple[int, int], Any] = {}


def readable_file(name: str) -> str:
  """Returns the path to open for `name`: itself, or the copy of a pipe, made at the first call.

  `-` is standard input. Rows are read several times (to check, to count, to tokenise), but a
  pipe gives them once.

  Raises:
    OSError, ValueError: it cannot be opened.
    UserError: there is no room for the copy.
  """
  path = "/dev/stdin" if name == STANDARD_INPUT else name
  found = os.stat(path)
  if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
    return path
  key = (found.st_dev, found.st_ino)
  if key not in _copies:
    say(f"{name}: a pipe, which is read to its end and copied")
    _copies[key] = _copy(path, name)
  return _copies[key].name


def _copy(path: str, name: str) -> Any:
  with open(path, "rb") as pipe:
    copy = tempfile.NamedTemporaryFile(prefix="dss_pipe_")  # noqa: SIM115
    try:
      shutil.copyfileobj(pipe, copy)
      copy.flush()
    except OSError as error:
      copy.close()
      raise UserError(
        f"{name}: the pipe cannot be copied to {tempfile.gettempdir()} ({error.strerror});"
        " set TMPDIR to a folder with room, or give a file"
      ) from None
  return copy
