"""Reads files and folders: local paths, pipes, and URLs through fsspec; gzip by its first bytes."""

import contextlib
import errno
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from dss_jax.errors import UserError
from dss_jax.progress import say
from dss_jax.storage.formats import GZIP, HEAD_BYTES, foreign_format
from dss_jax.storage.pipes import readable_file

PathLike = str | os.PathLike[str]

_BUFFER_BYTES = 2**20
_DRIVERS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "http": "aiohttp", "https": "aiohttp"}
_GZIP_ERRORS = (gzip.BadGzipFile, zlib.error, EOFError)
# TensorStore ends its messages with [tensorstore_spec='...'] [source locations='...'].
_TENSORSTORE_DETAILS = re.compile(r" \[\w[\w ]*='.*")


# Files that were said to be gzip: once, though rows are read several times.
_unnamed_gzip: set[str] = set()


class BrokenStreamError(UserError):
  """A file that is not the text it should be, or a damaged gzip stream, found while reading it."""


def is_url(path: PathLike) -> bool:
  """Returns whether the path starts with a scheme, as in `gs://bucket/file`."""
  return "://" in os.fspath(path)


def join(folder: PathLike, *names: str) -> str:
  """Returns the path or URL of a file below the folder."""
  name = os.fspath(folder)
  if not is_url(name):
    return os.path.join(name, *names)
  return "/".join((name.removesuffix("/"), *names))


def open_text(path: PathLike) -> IO[str]:
  """Opens a text file for reading: local, `-` or a URL, gzip or not, UTF-8 with or without a BOM.

  Raises:
    UserError: now, for a file that is missing, a directory, forbidden, or whose URL needs a
      driver that is not installed; while reading, for a broken gzip stream, another format
      (zstd, zip, UTF-16, ...) or text that is not UTF-8.
  """
  return _TextFile(open_bytes(path), os.fspath(path))


def open_bytes(path: PathLike) -> IO[bytes]:
  """Opens a file for reading as open_text does, but gives the decompressed bytes with any BOM."""
  name = os.fspath(path)
  binary: Any
  if is_url(name):
    binary = _ask(name, lambda system, inner: system.open(inner, "rb"))
  else:
    try:
      binary = open(readable_file(name), "rb", buffering=_BUFFER_BYTES)  # noqa: SIM115
    except (OSError, ValueError) as error:
      raise UserError(_open_failure(name, error)) from None
  return io.BufferedReader(_GuardedStream(binary, name), _BUFFER_BYTES)


def read_text(path: PathLike) -> str:
  """Returns the whole text of a file; raises as open_text does."""
  with open_text(path) as file:
    return file.read()


def read_bytes(path: PathLike) -> bytes:
  """Returns the whole, decompressed content of a file; raises as open_bytes does."""
  with open_bytes(path) as file:
    return file.read()


def exists(path: PathLike) -> bool:
  """Returns whether there is a file or a folder; a bucket has folders only by the files in them."""
  name = os.fspath(path)
  if is_url(name):
    return _ask(name, lambda system, inner: system.exists(inner))
  return os.path.exists(name)


def is_file(path: PathLike) -> bool:
  """Returns whether there is a file of this name."""
  name = os.fspath(path)
  if is_url(name):
    return _ask(name, lambda system, inner: system.isfile(inner))
  return os.path.isfile(name)


def is_dir(path: PathLike) -> bool:
  """Returns whether there is a folder of this name."""
  name = os.fspath(path)
  if is_url(name):
    return _ask(name, lambda system, inner: system.isdir(inner))
  return os.path.isdir(name)


def list_folder(folder: PathLike) -> list[str]:
  """Returns the names in a folder, sorted; raises UserError where it cannot be listed."""
  name = os.fspath(folder)
  if not is_url(name):
    try:
      return sorted(os.listdir(name))
    except (OSError, ValueError) as error:
      raise UserError(_list_failure(name, error)) from None
  if not is_dir(name):
    raise UserError(_list_failure(name, FileNotFoundError("no such folder")))
  # Drivers for buckets cache listings, and an empty folder may contain a marker of its own name.
  system, inner = file_system(name)
  system.invalidate_cache(inner)
  found = _ask(name, lambda system, inner: system.ls(inner, detail=False))
  root = inner.strip("/")
  paths = (path.strip("/") for path in found)
  return sorted(path.rpartition("/")[2] for path in paths if path != root)


def file_system(url: str) -> tuple[Any, str]:
  """Returns fsspec's file system of a URL and the path in it; raises UserError without a driver."""
  import fsspec

  try:
    return fsspec.core.url_to_fs(url)
  # ImportError for a missing driver, ValueError for an unknown scheme, and whatever the driver's
  # client library raises.
  except Exception as error:
    raise UserError(_open_failure(url, error)) from None


def reason(error: BaseException) -> str:
  """Returns an exception's message on one line of at most 200 characters."""
  text = getattr(error, "strerror", None) or str(error)
  if not text:
    text = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
  # Libraries wrap the cause in long sentences of their own.
  if (full := os.strerror(errno.ENOSPC)) in text:
    return full
  text = _TENSORSTORE_DETAILS.sub("", " ".join(str(text).split()))
  return text[:200].rstrip(".")


class _Rejoined:
  """A binary stream whose first bytes were read already, and come again."""

  def __init__(self, head: bytes, rest: Any):
    self._head = head
    self._read = getattr(rest, "read1", rest.read)

  def read(self, size: int) -> bytes:
    if not self._head:
      return self._read(size)
    part, self._head = self._head[:size], self._head[size:]
    return part


class _GuardedStream(io.RawIOBase):
  """The decompressed bytes of a file; raises its read failures as UserErrors that name it."""

  def __init__(self, binary: Any, name: str):
    self._binary = binary
    self._name = name
    self._read: Callable[[int], bytes] | None = None

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    try:
      if self._read is None:
        self._read = self._begin()
      data = self._read(len(buffer))
    except _GZIP_ERRORS as error:
      raise BrokenStreamError(
        f"{self._name}: the gzip stream is damaged or cut off ({reason(error)}); compress or"
        " copy the file again"
      ) from None
    except UserError:
      raise
    # A driver passes on any exception of its client library.
    except Exception as error:
      raise UserError(
        f"{self._name}: reading failed ({reason(error)}); check the file and try again"
      ) from None
    buffer[: len(data)] = data
    return len(data)

  def close(self) -> None:
    if not self.closed:
      with contextlib.suppress(OSError):
        self._binary.close()
    super().close()

  def _begin(self) -> Callable[[int], bytes]:
    """Returns what reads the decompressed bytes; raises BrokenStreamError for another format."""
    head = b""
    while len(head) < HEAD_BYTES and (more := self._binary.read(HEAD_BYTES - len(head))):
      head += more
    stream = _Rejoined(head, self._binary)
    read = stream.read
    if head.startswith(GZIP) or self._name.endswith(".gz"):
      self._say_unnamed_gzip()
      unzipped = gzip.GzipFile(fileobj=stream, mode="rb")  # type: ignore[call-overload]
      head = unzipped.peek(HEAD_BYTES)[:HEAD_BYTES]
      # read1 returns the bytes before the damage in a gzip stream; read would lose them.
      read = unzipped.read1
    what = foreign_format(head)
    if what is not None:
      raise BrokenStreamError(f"{self._name}: {what}")
    return read

  def _say_unnamed_gzip(self) -> None:
    if not self._name.endswith(".gz") and self._name not in _unnamed_gzip:
      _unnamed_gzip.add(self._name)
      say(f"{self._name}: compressed with gzip, without .gz in its name; it is decompressed")


class _TextFile(io.TextIOWrapper):
  """A text file that raises bytes that are not UTF-8 as a UserError that names the file."""

  def __init__(self, binary: Any, name: str):
    super().__init__(binary, encoding="utf-8-sig")
    self._path = name

  @contextlib.contextmanager
  def _decoding(self) -> Iterator[None]:
    try:
      yield
    except UnicodeDecodeError as error:
      byte = error.object[error.start]
      raise UserError(
        f"{self._path}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8"
      ) from None

  def read(self, size: int | None = -1) -> str:
    with self._decoding():
      return super().read(size)

  def readline(self, size: int = -1) -> str:  # type: ignore[override]
    with self._decoding():
      return super().readline(size)

  def __next__(self) -> str:  # type: ignore[override]
    with self._decoding():
      return super().__next__()


def _ask(url: str, question: Callable[[Any, str], Any]) -> Any:
  """Returns the answer of a URL's file system; raises any failure as a UserError."""
  system, inner = file_system(url)
  try:
    return question(system, inner)
  # A driver passes on any exception of its client library.
  except Exception as error:
    raise UserError(_open_failure(url, error)) from None


def _open_failure(name: str, error: Exception) -> str:
  if isinstance(error, ImportError):
    scheme = name.split("://")[0]
    package = _DRIVERS.get(scheme, f"fsspec's driver for {scheme}://")
    return (
      f"{name}: no driver for {scheme}:// is installed; `pip install {package}`, or give a"
      " path on this machine"
    )
  if isinstance(error, FileNotFoundError):
    return f"{name}: no such file; give the path of a file that exists"
  if isinstance(error, IsADirectoryError):
    return f"{name}: a directory; give the path of one file in it"
  if isinstance(error, PermissionError):
    return f"{name}: permission denied; give a file that you may read"
  return f"{name}: cannot be opened ({reason(error)}); give the path or URL of a readable file"


def _list_failure(name: str, error: Exception) -> str:
  return f"{name}: cannot be listed ({reason(error)}); give a folder that exists and you may read"
