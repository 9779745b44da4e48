"""Files in and out: local, gzip by suffix, URLs through fsspec; written whole or not at all."""

import contextlib
import gzip
import io
import os
import secrets
import stat
import zlib
from collections.abc import Iterator
from typing import IO, Any

from dss_jax.errors import UserError

PathLike = str | os.PathLike[str]

_BUFFER_BYTES = 2**20
_DRIVERS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "http": "aiohttp", "https": "aiohttp"}
_GZIP_ERRORS = (gzip.BadGzipFile, zlib.error, EOFError)


class BrokenStreamError(UserError):
  """A compressed stream that is damaged or ends early, found while reading it."""


def is_url(path: PathLike) -> bool:
  """Whether the path names a file system by a scheme, as in `gs://bucket/file`."""
  return "://" in os.fspath(path)


def open_text(path: PathLike) -> IO[str]:
  """A text file open for reading: local or a URL, gzip by suffix, UTF-8 with or without a mark.

  Raises:
    UserError: now, for a file that is missing, a directory, forbidden, or whose URL needs a
      driver that is not installed; while reading, for a broken gzip stream or text that is
      not UTF-8.
  """
  return _TextFile(open_bytes(path), os.fspath(path))


def open_bytes(path: PathLike) -> IO[bytes]:
  """As open_text, but the (decompressed) bytes, a byte-order mark included."""
  name = os.fspath(path)
  binary: Any
  if is_url(name):
    binary = _open_url(name)
  else:
    try:
      binary = open(name, "rb", buffering=_BUFFER_BYTES)  # noqa: SIM115
    except (OSError, ValueError) as error:
      raise UserError(_open_failure(name, error)) from None
  if name.endswith(".gz"):
    binary = gzip.GzipFile(fileobj=binary, mode="rb")
  return io.BufferedReader(_GuardedStream(binary, name), _BUFFER_BYTES)


@contextlib.contextmanager
def atomic_target(path: PathLike) -> Iterator[IO[bytes]]:
  """A binary file open for writing that takes its name only once it is whole.

  It is written beside the target, synced and moved into place; a URL is committed by its
  file system. If the body raises, the target stays as it was. A pipe or a device such as
  /dev/stdout is written to directly. Gzip by suffix, equal content giving equal bytes.

  Raises:
    UserError: the target cannot be written. What the body raises passes through.
  """
  name = os.fspath(path)
  if is_url(name):
    opened = _url_target(name)
  else:
    # A link keeps pointing where it pointed; the file behind it is replaced.
    target = os.path.realpath(name)
    opened = _device(name) if _is_device(target) else _beside(name, target)
  with opened as binary:
    if not name.endswith(".gz"):
      yield binary
      return
    with gzip.GzipFile(filename="", fileobj=binary, mode="wb", mtime=0) as zipped:
      yield zipped  # type: ignore[misc]


@contextlib.contextmanager
def writing(path: PathLike) -> Iterator[None]:
  """Turns the operating system's refusal to write into one sentence about `path`."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"{os.fspath(path)}: cannot be written ({reason(error)}); name a file in a folder that"
      " exists, has room, and that you may write to"
    ) from None


def reason(error: BaseException) -> str:
  """What an exception says, on one line of 200 characters at most."""
  text = getattr(error, "strerror", None) or str(error) or type(error).__name__
  return " ".join(str(text).split())[:200].rstrip(".")


class _GuardedStream(io.RawIOBase):
  """A binary stream whose failures while reading are UserErrors that name the file."""

  def __init__(self, binary: Any, name: str):
    self._binary = binary
    self._name = name
    # read1 hands over what lies before the damage in a gzip stream; read would lose it.
    self._read = getattr(binary, "read1", binary.read)

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    try:
      data = self._read(len(buffer))
    except _GZIP_ERRORS as error:
      raise BrokenStreamError(
        f"{self._name}: the gzip stream is damaged or cut off ({reason(error)}); compress or"
        " copy the file again"
      ) from None
    # A file system's driver raises whatever its client library does.
    except Exception as error:
      raise UserError(
        f"{self._name}: reading failed ({reason(error)}); check the file and try again"
      ) from None
    buffer[: len(data)] = data
    return len(data)

  def close(self) -> None:
    if not self.closed:
      # GzipFile leaves the file under it open.
      for stream in (self._binary, getattr(self._binary, "fileobj", None)):
        if stream is not None:
          with contextlib.suppress(*_GZIP_ERRORS, OSError):
            stream.close()
    super().close()


class _TextFile(io.TextIOWrapper):
  """A text file that says in one sentence where it stops being UTF-8."""

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


def _open_url(name: str) -> Any:
  import fsspec

  try:
    return fsspec.open(name, "rb").open()
  # ImportError for a missing driver, ValueError for an unknown scheme, and from there on
  # whatever the driver's client library raises.
  except Exception as error:
    raise UserError(_open_failure(name, error)) from None


def _open_failure(name: str, error: Exception) -> str:
  if isinstance(error, ImportError):
    scheme = name.split("://")[0]
    package = _DRIVERS.get(scheme, f"fsspec's driver for {scheme}://")
    return (
      f"{name}: no driver for {scheme}:// is installed; `pip install {package}`, or copy the"
      " file to this machine"
    )
  if isinstance(error, FileNotFoundError):
    return f"{name}: no such file; give the path of a file that exists"
  if isinstance(error, IsADirectoryError):
    return f"{name}: a directory; give the path of one file in it"
  if isinstance(error, PermissionError):
    return f"{name}: permission denied; give a file that you may read"
  return f"{name}: cannot be opened ({reason(error)}); give the path or URL of a readable file"


def _is_device(target: str) -> bool:
  try:
    mode = os.stat(target).st_mode
  except (OSError, ValueError):
    return False
  return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextlib.contextmanager
def _device(name: str) -> Iterator[IO[bytes]]:
  with writing(name):
    binary = open(name, "wb")  # noqa: SIM115
  with binary:
    yield binary


@contextlib.contextmanager
def _beside(name: str, target: str) -> Iterator[IO[bytes]]:
  folder, base = os.path.split(target)
  part = os.path.join(folder, f".{base[:100]}.{secrets.token_hex(4)}.part")
  if os.path.isdir(target):
    raise UserError(f"{name}: a directory, so it cannot be written as a file; name a file in it")
  with writing(name):
    binary = open(part, "xb", buffering=_BUFFER_BYTES)  # noqa: SIM115
  try:
    with binary:
      yield binary
      with writing(name):
        binary.flush()
        os.fsync(binary.fileno())
    with writing(name):
      os.replace(part, target)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(part)
    raise
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def _url_target(name: str) -> Iterator[IO[bytes]]:
  import fsspec

  try:
    system, inner = fsspec.core.url_to_fs(name)
  except Exception as error:
    raise UserError(_open_failure(name, error)) from None
  with system.transaction, system.open(inner, "wb") as binary:
    yield binary
