"""A folder of files that appears under its name only when it is whole."""

import contextlib
import errno
import os
import pathlib
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from typing import IO

_ABANDONED_SECONDS = 7 * 24 * 3600
_MOVES = 20
_PART_NAME = re.compile(r"\..+\.(?P<host>[^.]+)\.(?P<process>[0-9]+)\.[0-9a-f]{8}\.part")


def publish(
  folder: pathlib.Path,
  build: Callable[[pathlib.Path], None],
  is_whole: Callable[[], bool],
) -> None:
  """Has `build` fill a folder beside `folder`, then renames it into place.

  Where another process was faster and its folder `is_whole`, ours is dropped; a damaged one
  in the way is removed. A process that is killed leaves only a hidden part folder, which a
  later call on the same machine removes. Files that another process has mapped stay mapped.
  """
  folder.parent.mkdir(parents=True, exist_ok=True)
  _remove_abandoned(folder.parent)
  part = _part_beside(folder)
  part.mkdir()
  try:
    build(part)
    _sync(part)
    _move_into_place(part, folder, is_whole)
    _sync(folder.parent)
  finally:
    shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def synced_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """A new file, open for writing, that is on the disk when the block ends."""
  with path.open("xb") as file:
    yield file
    file.flush()
    os.fsync(file.fileno())


def _move_into_place(
  part: pathlib.Path, folder: pathlib.Path, is_whole: Callable[[], bool]
) -> None:
  for _ in range(_MOVES):
    try:
      os.rename(part, folder)
      return
    except OSError as error:
      if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
        raise
    if is_whole():
      return
    damaged = _part_beside(folder)
    # Another process may have moved it away first.
    with contextlib.suppress(FileNotFoundError):
      os.rename(folder, damaged)
    if damaged.is_dir():
      shutil.rmtree(damaged, ignore_errors=True)
    else:
      damaged.unlink(missing_ok=True)
  raise OSError(errno.EBUSY, "other processes keep writing it", str(folder))


def _part_beside(folder: pathlib.Path) -> pathlib.Path:
  """A new hidden name that says which process on which machine it belongs to."""
  host = socket.gethostname().replace(".", "-") or "localhost"
  return folder.parent / f".{folder.name}.{host}.{os.getpid()}.{secrets.token_hex(4)}.part"


def _remove_abandoned(parent: pathlib.Path) -> None:
  """Removes the part folders of processes that are gone."""
  for path in parent.glob(".*.part"):
    match = _PART_NAME.fullmatch(path.name)
    if match and not _is_in_use(path, match["host"], int(match["process"])):
      shutil.rmtree(path, ignore_errors=True)


def _is_in_use(path: pathlib.Path, host: str, process: int) -> bool:
  try:
    if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
      return False
    if host == socket.gethostname().replace(".", "-"):
      os.kill(process, 0)
  except (ProcessLookupError, FileNotFoundError):
    return False
  except PermissionError:
    return True
  return True


def _sync(folder: pathlib.Path) -> None:
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
