"""Folders as one sealed file: an archive, so that no file can be left out or put in."""

import io
import os
import pathlib
import shutil
import tarfile
from collections.abc import Iterable, Iterator

from dss_jax.storage.atomic import atomic_target, publishing, writing
from dss_jax.storage.files import PathLike
from dss_jax.storage.sealed import (
  DataKey,
  SealedError,
  SealedReader,
  Unlock,
  open_sealed,
  read_header,
  sealing,
)

_BUFFER_BYTES = 2**20


def seal_files(
  path: PathLike, key: DataKey, name: str, files: Iterable[tuple[pathlib.Path, str]]
) -> None:
  """Seals files as one archive, each under its name in it."""
  with (
    sealing(path, key, name, "folder") as file,
    tarfile.open(fileobj=file, mode="w|", bufsize=_BUFFER_BYTES) as archive,
  ):
    for source, inner in files:
      entry = tarfile.TarInfo(inner)
      with source.open("rb") as content:
        entry.size = os.fstat(content.fileno()).st_size
        archive.addfile(entry, content)


def files_below(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
  """Yields the files of a folder as seal_files takes them, sorted."""
  for path in sorted(folder.rglob("*")):
    if path.is_file():
      yield path, path.relative_to(folder).as_posix()


def open_to(path: PathLike, unlock: Unlock, output: str) -> None:
  """Decrypts a sealed file into a file, or an archive into a new folder; raises as open_sealed."""
  if read_header(path).kind == "folder":
    open_folder(path, unlock, pathlib.Path(output))
    return
  # Twice, since standard output takes nothing back: no byte is written before all are right.
  for target in (None, output):
    with open_sealed(path, unlock) as sealed:
      if target is None:
        while sealed.read(_BUFFER_BYTES):
          pass
      else:
        with atomic_target(target) as file, writing(target):
          shutil.copyfileobj(sealed, file, _BUFFER_BYTES)


def open_folder(
  path: PathLike,
  unlock: Unlock,
  folder: pathlib.Path,
  *,
  owner: str | None = None,
  name: str | None = None,
) -> None:
  """Writes a sealed archive's files into a new folder, which appears when all are right.

  Raises as open_sealed does.
  """
  reader = SealedReader(path, unlock, owner, name)
  with io.BufferedReader(reader, _BUFFER_BYTES) as file:
    if reader.header.kind != "folder":
      raise SealedError(f"{os.fspath(path)}: is a single file, no folder; open it as a file")
    with writing(folder), publishing(folder) as part:
      with tarfile.open(fileobj=file, mode="r|", bufsize=_BUFFER_BYTES) as archive:
        archive.extractall(part, filter="data")
      # The archive may end before the file does: its last chunk says that nothing is missing.
      while file.read(_BUFFER_BYTES):
        pass
