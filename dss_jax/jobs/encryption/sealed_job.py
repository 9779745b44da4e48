"""The files of an encrypted job: plain in a folder in memory, sealed under the same names on disk.

Whenever the job's process has written something whole (storage/durability.py), what is new is
sealed: a file that grew is appended to, a checkpoint becomes one archive. Imports nothing heavy.
"""

import contextlib
import os
import pathlib
import shutil
import threading
from collections.abc import Iterator
from typing import IO, NamedTuple

from dss_jax.storage.atomic import make_folder, remove, writing
from dss_jax.storage.durability import whenever_durable
from dss_jax.storage.sealed import (
  SUFFIX,
  DataKey,
  SealedLog,
  open_sealed,
  read_header,
  sealing,
)
from dss_jax.storage.sealed_folders import files_below, open_folder, seal_files

# Of a job's folder in memory, what can be lost.
CACHE_FOLDERS = ("cache", "tmp")
_CHECKPOINTS = "checkpoints"
_BUFFER_BYTES = 2**20


class _State(NamedTuple):
  """How a file was when it was sealed; of a checkpoint, which never changes, the inode alone."""

  inode: int
  size: int = 0
  time: int = 0


class SealedJob:
  """A job's plain files and its sealed ones."""

  def __init__(self, plain: pathlib.Path, disk: pathlib.Path, key: DataKey):
    """Does nothing yet.

    Args:
      plain: the folder in memory.
      disk: the job's folder, with the sealed files.
    """
    self._plain = plain
    self._disk = disk
    self._key = key
    self._sealed: dict[str, _State] = {}
    self._logs: dict[str, SealedLog] = {}
    self._lock = threading.RLock()
    self._is_sealing = False

  @contextlib.contextmanager
  def kept(self) -> Iterator[None]:
    """Opens the sealed files into memory; seals what the body writes, as soon as it is whole.

    At the end nothing is left in memory. Raises SealedError if a file was changed.
    """
    try:
      self.open()
      try:
        with whenever_durable(self.seal):
          yield
      finally:
        self.seal()
    finally:
      for log in self._logs.values():
        log.close()
      shutil.rmtree(self._plain, ignore_errors=True)

  def open(self) -> None:
    """Writes what is sealed into memory; files that are there already stay."""
    for path in sorted(self._disk.rglob(f"*{SUFFIX}")):
      name = path.relative_to(self._disk).as_posix().removesuffix(SUFFIX)
      if not (self._plain / name).exists():
        self._open(path, name)

  def open_file(self, name: str) -> None:
    """Writes one sealed file into memory, if it is there."""
    path = self._disk / f"{name}{SUFFIX}"
    if path.exists() and not (self._plain / name).exists():
      self._open(path, name)

  def _open(self, path: pathlib.Path, name: str) -> None:
    target = self._plain / name
    make_folder(target.parent)
    if read_header(path).kind == "folder":
      open_folder(path, lambda header: self._key, target, owner=self._key.owner, name=name)
    else:
      with self._reader(path, name) as source, writing(target), target.open("xb") as plain:
        shutil.copyfileobj(source, plain, _BUFFER_BYTES)
    self._sealed[name] = _state(target)

  def _reader(self, path: pathlib.Path, name: str) -> IO[bytes]:
    return open_sealed(path, lambda header: self._key, owner=self._key.owner, name=name)

  def seal_file(self, name: str) -> None:
    """Seals one file."""
    with self._lock:
      self._seal_part(name)

  def seal(self) -> None:
    """Seals what is new since the last time."""
    with self._lock:
      # What is written here is whole, too.
      if self._is_sealing:
        return
      self._is_sealing = True
      try:
        self._seal()
      finally:
        self._is_sealing = False

  def _seal(self) -> None:
    found = sorted(self._parts())
    for name in found:
      # Another thread may have removed it.
      with contextlib.suppress(FileNotFoundError):
        self._seal_part(name)
    steps = {name for name in found if _is_step(name)}
    for name in self._sealed.keys() - steps:
      # Files stay: they are few, and one that has gone is no sign that it is not needed.
      if steps and _is_step(name):
        remove(self._disk / f"{name}{SUFFIX}")
        del self._sealed[name]

  def _parts(self) -> Iterator[str]:
    """Yields the names of files and checkpoints; hidden and unfinished ones are left out."""
    for folder, folders, files in os.walk(self._plain):
      place = pathlib.Path(folder).relative_to(self._plain)
      names = [each for each in folders if not each.startswith(".")]
      if place == pathlib.Path():
        names = [each for each in names if each not in CACHE_FOLDERS]
      if place.name == _CHECKPOINTS:
        yield from (str(place / each) for each in names if each.isdecimal())
        names = []
      folders[:] = names
      yield from (str(place / each) for each in files if not each.startswith("."))

  def _seal_part(self, name: str) -> None:
    path, target = self._plain / name, self._disk / f"{name}{SUFFIX}"
    state, before = _state(path), self._sealed.get(name)
    if state == before:
      return
    make_folder(target.parent)
    # Until it is complete, what is on the disk is not known.
    self._sealed.pop(name, None)
    with contextlib.ExitStack() as stack:
      if log := self._logs.pop(name, None):
        stack.callback(log.close)
      if path.is_dir():
        seal_files(target, self._key, name, files_below(path))
      elif before is None or state.inode != before.inode or state.size <= before.size:
        with sealing(target, self._key, name) as sealed:
          for part in _content(path, 0, state.size):
            sealed.write(part)
      elif log is None:
        self._logs[name] = SealedLog(target, self._key, name, _content(path, 0, state.size))
      else:
        log.append(_content(path, before.size, state.size))
        stack.pop_all()
        self._logs[name] = log
    self._sealed[name] = state


def _state(path: pathlib.Path) -> _State:
  found = path.stat()
  if path.is_dir():
    return _State(found.st_ino)
  return _State(found.st_ino, found.st_size, found.st_mtime_ns)


def _is_step(name: str) -> bool:
  path = pathlib.PurePath(name)
  return path.parent.name == _CHECKPOINTS and path.name.isdecimal()


def _content(path: pathlib.Path, start: int, end: int) -> Iterator[bytes]:
  """Yields a part of a file, which may go on growing."""
  with path.open("rb") as file:
    file.seek(start)
    while start < end and (part := file.read(min(_BUFFER_BYTES, end - start))):
      start += len(part)
      yield part
