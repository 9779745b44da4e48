"""The one writer: files and folders appear under their names whole or not at all."""

import contextlib
import errno
import gzip
import os
import pathlib
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from dss_jax.errors import ReaderGone, UserError
from dss_jax.storage.durability import durable
from dss_jax.storage.files import (
  PathLike,
  file_system,
  is_dir,
  is_file,
  is_url,
  list_folder,
  reason,
)

_BUFFER_BYTES = 2**20
_NAME_BYTES = 100
_ABANDONED_SECONDS = 7 * 24 * 3600
_MAX_RENAMES = 20
_PART_NAME = re.compile(r"\..+\.(?P<host>[^.]+)\.(?P<process>[0-9]+)\.[0-9a-f]{8}\.part")


@contextlib.contextmanager
def atomic_target(path: PathLike) -> Iterator[IO[bytes]]:
  """Opens a binary file for writing that takes its name only when it is whole.

  It is written beside the target, synced and renamed; a URL is committed by its file system.
  If the body raises, the target stays as it was. A pipe, a device or standard output (`-`) is
  written directly. Gzip by suffix; equal content gives equal bytes.

  Raises:
    UserError: the target cannot be written. What the body raises passes through.
    ReaderGone: the target is a pipe that nobody reads any more.
  """
  name = os.fspath(path)
  if is_url(name):
    opened = _url_target(name)
  elif is_standard_output(name):
    opened = _opened_directly(name, os.dup(1))
  else:
    # A link stays a link; the file that it points to is replaced.
    target = os.path.realpath(name)
    opened = _opened_directly(name, name) if _is_device(target) else _beside(name, target)
  with opened as binary:
    if not name.endswith(".gz"):
      yield binary
      return
    with gzip.GzipFile(filename="", fileobj=binary, mode="wb", mtime=0) as zipped:
      yield zipped  # type: ignore[misc]


def is_standard_output(path: PathLike) -> bool:
  """Returns whether what is written there goes where the command prints."""
  return os.fspath(path) in ("-", "/dev/stdout")


def write_bytes(path: PathLike, content: bytes) -> None:
  """Writes a whole file through atomic_target."""
  with atomic_target(path) as file, writing(path):
    file.write(content)


def write_text(path: PathLike, text: str) -> None:
  """Writes a whole file of UTF-8 text through atomic_target."""
  write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def writing(path: PathLike, refusal: type[Exception] = OSError) -> Iterator[None]:
  """Raises the body's `refusal` as a UserError that says that `path` cannot be written.

  A pipe that nobody reads any more raises ReaderGone.
  """
  try:
    yield
  except UserError:
    raise
  except BrokenPipeError:
    raise ReaderGone from None
  except refusal as error:
    raise UserError(
      f"{os.fspath(path)}: cannot be written ({reason(error)}); name a place in a folder that"
      " exists, has room, and that you may write to"
    ) from None


@contextlib.contextmanager
def publishing(
  folder: PathLike, is_whole: Callable[[], bool] | None = None
) -> Iterator[pathlib.Path]:
  """Gives a new local folder to fill, which becomes `folder` when the body ends.

  If the body raises, the new folder is removed. A process that is killed leaves only a hidden
  part folder, which a later call on the same machine removes. Under a URL the files are
  uploaded when the body ends and committed together.

  Args:
    is_whole: whether a folder that is there already will do: then it is kept, as when another
      process was faster, else it is replaced; its files that others have mapped stay mapped.
      Without it, a folder with files is not replaced.

  Raises:
    OSError: it cannot be made or renamed on a local disk.
    UserError: it cannot be uploaded.
  """
  name = os.fspath(folder)
  if is_url(name):
    with tempfile.TemporaryDirectory(prefix="dss_folder_") as temporary:
      yield pathlib.Path(temporary)
      _upload(pathlib.Path(temporary), name, is_whole)
    return
  target = pathlib.Path(name).absolute()
  target.parent.mkdir(parents=True, exist_ok=True)
  _remove_abandoned(target.parent)
  part = pathlib.Path(_part_beside(str(target)))
  part.mkdir()
  try:
    yield part
    _sync_folder(part)
    _move_into_place(part, target, is_whole)
    _sync_folder(target.parent)
  finally:
    shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def synced_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Opens a new local file for writing that is on the disk when the body ends."""
  with path.open("xb") as file:
    yield file
    file.flush()
    os.fsync(file)


def sync(file: IO[Any] | int) -> None:
  """Waits until an open file's flushed bytes are on the disk, for files that are appended to."""
  os.fsync(file)
  durable()


def make_folder(folder: PathLike) -> None:
  """Makes a folder and its parents, unless it is there; raises UserError where it cannot."""
  name = os.fspath(folder)
  if is_url(name):
    system, inner = file_system(name)
    with writing(name, Exception):
      system.makedirs(inner, exist_ok=True)
    return
  with writing(name):
    os.makedirs(name, exist_ok=True)


def remove(path: PathLike) -> None:
  """Removes a file, or a folder with all files in it; nothing happens where there is none."""
  name = os.fspath(path)
  if is_url(name):
    system, inner = file_system(name)
    with writing(name, Exception), contextlib.suppress(FileNotFoundError):
      system.rm(inner, recursive=True)
    return
  with writing(name), contextlib.suppress(FileNotFoundError):
    if os.path.isdir(name) and not os.path.islink(name):
      shutil.rmtree(name)
    else:
      os.remove(name)


def withdraw(folder: PathLike) -> None:
  """Removes a local folder at once: it loses its name before its files go.

  A process that is killed leaves only a hidden part folder, which a later call removes.
  """
  target = pathlib.Path(os.fspath(folder)).absolute()
  _remove_abandoned(target.parent)
  part = _part_beside(str(target))
  with writing(target):
    os.rename(target, part)
    _sync_folder(target.parent)
  shutil.rmtree(part, ignore_errors=True)


def copy_tree(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies a local folder into a new one, whose files are on the disk when it returns."""
  target.mkdir(parents=True)
  for path in sorted(source.iterdir()):
    if path.is_dir():
      copy_tree(path, target / path.name)
    else:
      copy_file(path, target / path.name)


def copy_file(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies a local file into a new one, which is on the disk when it returns."""
  with source.open("rb") as original, synced_file(target) as copy:
    shutil.copyfileobj(original, copy, _BUFFER_BYTES)


def _is_device(target: str) -> bool:
  try:
    mode = os.stat(target).st_mode
  except (OSError, ValueError):
    return False
  return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextlib.contextmanager
def _opened_directly(name: str, target: str | int) -> Iterator[IO[bytes]]:
  with writing(name):
    binary = open(target, "wb")  # noqa: SIM115
  try:
    yield binary
    with writing(name):
      binary.flush()
  finally:
    with contextlib.suppress(OSError):
      binary.close()


@contextlib.contextmanager
def _beside(name: str, target: str) -> Iterator[IO[bytes]]:
  if os.path.isdir(target):
    raise UserError(f"{name}: a directory, so it cannot be written as a file; name a file in it")
  part = _part_beside(target)
  with writing(name):
    binary = open(part, "xb", buffering=_BUFFER_BYTES)  # noqa: SIM115
  try:
    try:
      yield binary
      with writing(name):
        binary.flush()
        os.fsync(binary)
    finally:
      # Closing writes again what could not be written, and would hide why.
      with contextlib.suppress(OSError):
        binary.close()
    with writing(name):
      os.replace(part, target)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(part)
    raise
  _sync_folder(os.path.dirname(target))
  durable()


@contextlib.contextmanager
def _url_target(name: str) -> Iterator[IO[bytes]]:
  with _transaction(name) as (system, inner):
    with writing(name, Exception):
      binary = system.open(inner, "wb")
    with binary:
      yield binary


@contextlib.contextmanager
def _transaction(name: str) -> Iterator[tuple[Any, str]]:
  """Gives a URL's file system and path; files written in the body are committed at its end."""
  import fsspec

  system, inner = file_system(name)
  if system._intrans:
    # A file system has one transaction at a time, and fsspec shares it within a thread.
    system, inner = fsspec.core.url_to_fs(name, skip_instance_cache=True)
  with contextlib.ExitStack() as stack:
    stack.enter_context(system.transaction)
    yield system, inner
    with writing(name, Exception):
      stack.close()


def _upload(part: pathlib.Path, name: str, is_whole: Callable[[], bool] | None) -> None:
  if is_whole is None:
    if is_file(name) or (is_dir(name) and list_folder(name)):
      raise UserError(f"{name}: exists already; name a new folder")
  elif is_whole():
    return
  else:
    remove(name)
  with _transaction(name) as (system, inner), writing(name, Exception):
    for path in sorted(path for path in part.rglob("*") if path.is_file()):
      place = f"{inner.rstrip('/')}/{path.relative_to(part).as_posix()}"
      with path.open("rb") as source, system.open(place, "wb") as target:
        shutil.copyfileobj(source, target, _BUFFER_BYTES)


def _move_into_place(
  part: pathlib.Path, folder: pathlib.Path, is_whole: Callable[[], bool] | None
) -> None:
  for _ in range(_MAX_RENAMES):
    try:
      os.rename(part, folder)
      return
    except OSError as error:
      if is_whole is None or error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
        raise
    if is_whole():
      return
    damaged = pathlib.Path(_part_beside(str(folder)))
    # Another process may have moved it away first.
    with contextlib.suppress(FileNotFoundError):
      os.rename(folder, damaged)
    if damaged.is_dir():
      shutil.rmtree(damaged, ignore_errors=True)
    else:
      damaged.unlink(missing_ok=True)
  raise OSError(errno.EBUSY, "other processes keep writing it", str(folder))


def _part_beside(target: str) -> str:
  """Returns a new hidden name beside the target, with this machine's and process's names in it."""
  folder, base = os.path.split(target)
  base = os.fsencode(base)[:_NAME_BYTES].decode("utf-8", "ignore")
  return os.path.join(folder, f".{base}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.part")


def _host() -> str:
  return socket.gethostname().replace(".", "-") or "localhost"


def _remove_abandoned(parent: pathlib.Path) -> None:
  """Removes the part files and folders of processes that have ended."""
  for path in parent.glob(".*.part"):
    match = _PART_NAME.fullmatch(path.name)
    if match and not _is_in_use(path, match["host"], int(match["process"])):
      shutil.rmtree(path, ignore_errors=True)
      with contextlib.suppress(OSError):
        path.unlink()


def _is_in_use(path: pathlib.Path, host: str, process: int) -> bool:
  try:
    if host == _host():
      os.kill(process, 0)
    # The age says less, since clocks differ and are set; of other machines it is all there is.
    elif time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
      return False
  except (ProcessLookupError, FileNotFoundError):
    return False
  except PermissionError:
    return True
  return True


def _sync_folder(folder: str | os.PathLike[str]) -> None:
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
