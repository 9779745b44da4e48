"""Folders whose files are never on a disk: on a file system in memory, for one user alone."""

import os
import pathlib
import re
import resource
import shutil
import stat

from dss_jax.errors import UserError

_SWAPS = pathlib.Path("/proc/swaps")
_MOUNTS = pathlib.Path("/proc/self/mounts")
_IN_MEMORY = ("tmpfs", "ramfs")
_OCTAL = re.compile(r"\\([0-7]{3})")


def check_is_memory(folder: pathlib.Path, mounts: pathlib.Path = _MOUNTS) -> None:
  """Raises UserError unless a folder's file system is in memory.

  Args:
    mounts: the kernel's list of file systems.
  """
  real = pathlib.Path(os.path.realpath(folder))
  try:
    lines = [line.split(" ") for line in mounts.read_text(encoding="utf-8").splitlines()]
  except OSError:
    raise UserError(
      f"{folder}: only Linux says whether a file system is in memory; run the server there"
    ) from None
  kinds = {pathlib.Path(_OCTAL.sub(_character, line[1])): line[2] for line in lines}
  # The last of those mounted at one place is seen; of nested ones, the inner.
  place = next((each for each in (real, *real.parents) if each in kinds), None)
  if place is None or kinds[place] not in _IN_MEMORY or not real.is_dir():
    raise UserError(
      f"{folder}: is not on a file system in memory ({' or '.join(_IN_MEMORY)}); name one, such as"
      " /dev/shm"
    )


def make_private_folder(folder: pathlib.Path) -> None:
  """Makes a folder that its owner alone can enter, unless it is there.

  Raises UserError if it cannot be made, or if it is another user's, or open to others.
  """
  try:
    folder.mkdir(mode=stat.S_IRWXU)
  except FileExistsError:
    pass
  except OSError as error:
    raise UserError(
      f"{folder}: cannot be made ({error.strerror}); name another folder in memory"
    ) from None
  found = folder.lstat()
  is_open = found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
  if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or is_open:
    raise UserError(f"{folder}: is another user's, or open to others; remove it")


def free_bytes(folder: pathlib.Path) -> int:
  """Returns the room that a folder's file system has."""
  return shutil.disk_usage(folder).free


def has_swap(swaps: pathlib.Path = _SWAPS) -> bool:
  """Returns whether the system may write what is in memory to a disk, as far as it says so."""
  try:
    # Below a line of titles.
    return len(swaps.read_text(encoding="utf-8").splitlines()) > 1
  except OSError:
    return False


def forbid_core_dumps() -> None:
  """Has the system write no core file of this process, which would have what is in memory."""
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _character(match: "re.Match[str]") -> str:
  return chr(int(match[1], 8))
