"""An encrypted student's folder: one sealed file in place of all others. Imports nothing heavy."""

import os
import pathlib

from dss_jax.storage.sealed import SealedError, read_header

# An archive of what a student's folder has (storage/sealed_folders.py).
SEALED = "student.sealed"


def sealed_name(model: str) -> str:
  """Returns the name under which a model's students are sealed."""
  return f"models/{model}"


def is_sealed(folder: pathlib.Path) -> bool:
  # Unlike pathlib's, false for names that no file can have, such as with NUL.
  return os.path.isfile(folder / SEALED)


def check_readable(folder: pathlib.Path, given: str) -> None:
  """Raises SealedError if a student is encrypted.

  Args:
    given: how the user named the student.
  """
  if is_sealed(folder):
    path = folder / SEALED
    raise SealedError(
      f"{given}: is encrypted with the key {read_header(path).key_name}; its job server's endpoint"
      f" answers for it, and with the key's file `dss jobs open --key FILE {path} --output DIR`"
      " decrypts it"
    )
