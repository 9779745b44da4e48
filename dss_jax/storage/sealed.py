"""Sealed files: encrypted and authenticated a chunk at a time, with AES-256-GCM.

  MAGIC | length of the header, 4 bytes | header, JSON | salt, 32 bytes | chunks
  chunk:  length, 4 bytes | ciphertext | tag, 16 bytes

The construction is Tink's AES-GCM-HKDF streaming (STREAM of Hoang et al. 2015): a file's own key is
HKDF-SHA256 of the data key and the salt, a chunk's nonce its number and whether it is the last, and
all bytes before the salt are its associated data. So no chunk can be changed, moved, left out, or
brought in from another file, and a file cannot pass for another one: the header has its name and
what it belongs to. A file that is appended to has no last chunk; its end may be lost unnoticed, as
by a kill. The header also has the data key, wrapped by the operator's key (storage/keys.py).
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Literal

from dss_jax.errors import UserError
from dss_jax.storage.atomic import atomic_target, sync, writing
from dss_jax.storage.files import PathLike, open_bytes

MAGIC = b"DSS\x00SEALED\x01\n"
SUFFIX = ".sealed"
FORMAT = 1
CHUNK_BYTES = 2**16
Kind = Literal["file", "log", "folder"]

_SALT_BYTES = 32
_TAG_BYTES = 16
_LENGTH_BYTES = 4
_MAX_HEADER = 2**16
_MAX_CHUNK = 2**24
_LAST = 1


class SealedError(UserError):
  """A sealed file, its key, or the memory for what is in it cannot be used."""


@dataclasses.dataclass(frozen=True)
class Header:
  """What anybody can read of a sealed file.

  Attributes:
    kind: "log" may be appended to, "folder" is an archive of files.
    owner: the job that it belongs to.
    name: of the file, below its owner.
    key_name: the operator's key that wraps the data key.
    wrapped: the wrapped data key, in base64.
  """

  kind: Kind
  owner: str
  name: str
  key_name: str
  wrapped: str
  format: int = FORMAT


@dataclasses.dataclass(frozen=True)
class DataKey:
  """The key of one owner's files.

  Attributes:
    secret: 32 bytes, which are never written.
    owner, key_name, wrapped: as in Header.
  """

  secret: bytes = dataclasses.field(repr=False)
  owner: str
  key_name: str
  wrapped: str

  def header(self, name: str, kind: Kind) -> Header:
    return Header(kind, self.owner, name, self.key_name, self.wrapped)


# Returns the data key of a header, or raises SealedError.
Unlock = Callable[[Header], DataKey]


@contextlib.contextmanager
def sealing(
  path: PathLike, key: DataKey, name: str, kind: Kind = "file"
) -> Iterator["SealedWriter"]:
  """Opens a sealed file for writing, which takes its name when it is whole, as atomic_target."""
  with atomic_target(path) as file:
    writer = SealedWriter(file, key, name, kind)
    yield writer
    with writing(path):
      writer.end()


class SealedWriter(io.RawIOBase):
  """Encrypts what is written to it; without a call of `end` the file is a log."""

  def __init__(self, file: IO[bytes], key: DataKey, name: str, kind: Kind):
    header = dataclasses.asdict(key.header(name, kind))
    self._head = _prefix(json.dumps(header).encode("ascii"))
    salt = secrets.token_bytes(_SALT_BYTES)
    self._file = file
    self._cipher = _cipher(key.secret, salt)
    self._number = 0
    self._pending = bytearray()
    file.write(self._head + salt)

  def writable(self) -> bool:
    return True

  def write(self, data: Any) -> int:
    """Takes bytes; whole chunks of them are written, the rest with flush_chunk or end."""
    self._pending += data
    while len(self._pending) > CHUNK_BYTES:
      self._chunk(bytes(self._pending[:CHUNK_BYTES]))
      del self._pending[:CHUNK_BYTES]
    return len(data)

  def flush_chunk(self) -> None:
    """Writes what is pending as a chunk of its own."""
    if self._pending:
      self._chunk(bytes(self._pending))
      self._pending.clear()

  def end(self) -> None:
    """Writes the last chunk, which may be empty."""
    self._chunk(bytes(self._pending), _LAST)
    self._pending.clear()

  def _chunk(self, content: bytes, last: int = 0) -> None:
    sealed = self._cipher.encrypt(_nonce(self._number, last), content, self._head)
    self._number += 1
    self._file.write(len(sealed).to_bytes(_LENGTH_BYTES, "big") + sealed)


class SealedLog:
  """A sealed file that is appended to.

  A chunk's number must not be used twice with one key, so a log that another process has written
  is begun anew, with what it had.
  """

  def __init__(self, path: pathlib.Path, key: DataKey, name: str, content: Iterable[bytes]):
    """Writes a new log in place of whatever has the name."""
    with atomic_target(path) as file:
      self._writer = SealedWriter(file, key, name, "log")
      self._write(content)
    self._file = path.open("ab", buffering=0)
    self._writer._file = self._file

  def append(self, content: Iterable[bytes]) -> None:
    """Adds bytes, which are on the disk when it returns; after an exception it cannot be used."""
    with writing(self._file.name):
      self._write(content)
      sync(self._file)

  def close(self) -> None:
    self._file.close()

  def _write(self, content: Iterable[bytes]) -> None:
    for part in content:
      self._writer.write(part)
    self._writer.flush_chunk()


class SealedReader(io.RawIOBase):
  """The bytes of a sealed file; raises SealedError before it gives a byte that was changed."""

  def __init__(self, path: PathLike, unlock: Unlock, owner: str | None, name: str | None):
    self._path = os.fspath(path)
    self._file = open_bytes(path)
    try:
      self._head = _read_head(self._file, self._path)
      self.header = header = _parse(self._head, self._path)
      if (owner or header.owner, name or header.name) != (header.owner, header.name):
        raise SealedError(
          f"{self._path}: is {header.name} of {header.owner}, put in the place of another file;"
          " restore the right one from a copy"
        )
      key = unlock(header)
      self._cipher = _cipher(key.secret, self._exactly(_SALT_BYTES))
    except BaseException:
      self._file.close()
      raise
    self._number = 0
    self._has_ended = False
    self._content = memoryview(b"")

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    while not self._content and not self._has_ended:
      self._content = memoryview(self._chunk())
    part = self._content[: len(buffer)]
    buffer[: len(part)] = part
    self._content = self._content[len(part) :]
    return len(part)

  def close(self) -> None:
    self._file.close()
    super().close()

  def _chunk(self) -> bytes:
    """Returns the next chunk; b"" at the end of a log."""
    is_log = self.header.kind == "log"
    start = self._file.read(_LENGTH_BYTES)
    length = int.from_bytes(start, "big")
    if is_log and len(start) < _LENGTH_BYTES:
      # What a killed process had begun to append is lost.
      return self._end()
    if len(start) < _LENGTH_BYTES or not _TAG_BYTES <= length <= _MAX_CHUNK:
      raise self._damaged()
    sealed = self._file.read(length)
    if len(sealed) < length:
      if is_log:
        return self._end()
      raise self._damaged()
    for last in (0,) if is_log else (0, _LAST):
      with contextlib.suppress(_invalid_tag()):
        content = self._cipher.decrypt(_nonce(self._number, last), sealed, self._head)
        self._number += 1
        if last:
          self._end()
          if self._file.read(1):
            raise self._damaged()
        return content
    raise self._damaged()

  def _end(self) -> bytes:
    self._has_ended = True
    return b""

  def _exactly(self, count: int) -> bytes:
    data = self._file.read(count)
    if len(data) < count:
      raise self._damaged()
    return data

  def _damaged(self) -> SealedError:
    return SealedError(
      f"{self._path}: was changed or cut off after it was encrypted; restore it from a copy"
    )


def open_sealed(
  path: PathLike, unlock: Unlock, *, owner: str | None = None, name: str | None = None
) -> IO[bytes]:
  """Opens a sealed file for reading.

  Args:
    owner, name: what it must be; None takes any.

  Raises:
    SealedError: now or while reading, for another file, another key, or changed bytes.
  """
  return io.BufferedReader(SealedReader(path, unlock, owner, name), CHUNK_BYTES)


def read_header(path: PathLike) -> Header:
  """Returns what a sealed file says of itself, which nothing has checked yet; raises SealedError.

  Needs no key.
  """
  with open_bytes(path) as file:
    return _parse(_read_head(file, os.fspath(path)), os.fspath(path))


def _prefix(header: bytes) -> bytes:
  return MAGIC + len(header).to_bytes(_LENGTH_BYTES, "big") + header


def _read_head(file: IO[bytes], path: str) -> bytes:
  start = file.read(len(MAGIC) + _LENGTH_BYTES)
  length = int.from_bytes(start[len(MAGIC) :], "big")
  if not start.startswith(MAGIC) or length > _MAX_HEADER:
    raise SealedError(f"{path}: is no file that a job server encrypted; give one whose name ends"
                      f" in {SUFFIX}")  # fmt: skip
  return start + file.read(length)


def _parse(head: bytes, path: str) -> Header:
  try:
    values = json.loads(head[len(MAGIC) + _LENGTH_BYTES :])
    header = Header(**values)
    if not all(isinstance(each, str) for key, each in values.items() if key != "format"):
      raise ValueError
    if header.format != FORMAT:
      raise SealedError(
        f"{path}: is of format {header.format}, and this program knows {FORMAT}; take the"
        " dss_jax that wrote it"
      )
  except (ValueError, TypeError):
    raise SealedError(f"{path}: its header is damaged; restore it from a copy") from None
  return header


def _nonce(number: int, last: int) -> bytes:
  return number.to_bytes(11, "big") + bytes([last])


def _cipher(secret: bytes, salt: bytes) -> Any:
  # Late: who only reads headers needs no cryptography.
  from cryptography.hazmat.primitives.ciphers.aead import AESGCM
  from cryptography.hazmat.primitives.hashes import SHA256
  from cryptography.hazmat.primitives.kdf.hkdf import HKDF

  return AESGCM(HKDF(SHA256(), 32, salt, b"dss_jax sealed file").derive(secret))


def _invalid_tag() -> type[Exception]:
  from cryptography.exceptions import InvalidTag

  return InvalidTag
