"""The operator's keys, which wrap the data keys of sealed files: a file of 32 bytes, or a KMS.

A key itself is in no message and in nothing that is written but its own file.
"""

import base64
import binascii
import dataclasses
import importlib
import os
import pathlib
import secrets
import stat
from collections.abc import Callable
from typing import Any, Protocol

from dss_jax.errors import UserError
from dss_jax.storage.files import PathLike, reason
from dss_jax.storage.sealed import DataKey, Header, SealedError

_KEY_BYTES = 32
_NONCE_BYTES = 12


class WrappingKey(Protocol):
  """What wraps data keys; a KMS's plug-in is one, too."""

  def wrap(self, data: bytes) -> bytes:
    """Returns a data key encrypted."""
    ...

  def unwrap(self, data: bytes) -> bytes:
    """Returns what `wrap` was given; raises whatever if it cannot."""
    ...


@dataclasses.dataclass(frozen=True)
class KeyPlace:
  """Where a key is: in a file, or with a plug-in.

  Attributes:
    file: its 32 bytes in base64; its owner alone may read it.
    plugin: "module:function"; the function gets the key's name and returns a WrappingKey.
  """

  file: str | None = None
  plugin: str | None = None

  def key(self, name: str) -> WrappingKey:
    """Returns the key of this name; raises SealedError if it is not there."""
    if self.file is not None:
      return read_key(self.file, name)
    assert self.plugin is not None
    module, _, function = self.plugin.partition(":")
    return _asked(name, lambda: getattr(importlib.import_module(module), function)(name))


class KeyFile:
  """A key that was read from a file."""

  def __init__(self, secret: bytes, name: str):
    self._secret = secret
    self._name = b"dss_jax data key\0" + name.encode("utf-8")

  def wrap(self, data: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + self._cipher().encrypt(nonce, data, self._name)

  def unwrap(self, data: bytes) -> bytes:
    return self._cipher().decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], self._name)

  def _cipher(self) -> Any:
    # Late, as in sealed.py.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(self._secret)


def write_key(path: PathLike) -> None:
  """Writes a new random key into a new file that its owner alone may read; raises UserError."""
  name = os.fspath(path)
  try:
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR)
  except OSError as error:
    raise UserError(
      f"--out {name}: cannot be made ({reason(error)}); name a new file in a folder that you may"
      " write to"
    ) from None
  with open(file, "wb") as opened:
    opened.write(base64.b64encode(secrets.token_bytes(_KEY_BYTES)) + b"\n")


def read_key(path: PathLike, name: str) -> KeyFile:
  """Reads a key's file.

  Args:
    name: of the key.

  Raises SealedError if it is not there, is none, or others may read it.
  """
  place = pathlib.Path(os.fspath(path))
  try:
    with place.open("rb") as file:
      mode = os.fstat(file.fileno())
      text = file.read(1024)
  except OSError as error:
    raise SealedError(
      f"the key {name}: its file cannot be read ({reason(error)}); the operator gives it back, or"
      " names another in `keys`"
    ) from None
  if mode.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or mode.st_uid not in (os.geteuid(), 0):
    raise SealedError(
      f"the key {name}: its file is open to other users of the machine; chmod 600 it, as the user"
      " that runs the server"
    )
  try:
    secret = base64.b64decode(text.strip(), validate=True)
  except binascii.Error:
    secret = b""
  if len(secret) != _KEY_BYTES:
    raise SealedError(
      f"the key {name}: its file does not hold 32 bytes in base64; `dss jobs key --out FILE` makes"
      " one"
    )
  return KeyFile(secret, name)


def new_data_key(key: WrappingKey, owner: str, key_name: str) -> DataKey:
  """Returns a random data key for the files of an owner; raises SealedError if none is wrapped."""
  secret = secrets.token_bytes(_KEY_BYTES)
  wrapped = _asked(key_name, lambda: key.wrap(secret))
  return DataKey(secret, owner, key_name, base64.b64encode(wrapped).decode("ascii"))


def unwrapped(key: WrappingKey, header: Header) -> DataKey:
  """Returns the data key of a header; raises SealedError if this key did not wrap it."""

  def unwrap() -> bytes:
    return key.unwrap(base64.b64decode(header.wrapped, validate=True))

  secret = _asked(header.key_name, unwrap)
  if len(secret) != _KEY_BYTES:
    raise SealedError(f"the key {header.key_name}: does not open these files; give the right one")
  return DataKey(secret, header.owner, header.key_name, header.wrapped)


def _asked(name: str, ask: Callable[[], Any]) -> Any:
  try:
    return ask()
  except SealedError:
    raise
  # A plug-in raises what its KMS's client raises; its text may have a secret.
  except Exception as error:
    raise SealedError(
      f"the key {name}: does not open these files, or was withdrawn ({type(error).__name__}); the"
      " operator gives the right one back"
    ) from None
