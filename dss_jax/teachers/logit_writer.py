"""Writes a teacher's next tokens, resumably: a process that is killed loses a few batches.

The columns grow in place. journal.json says how far they were on the disk, and is replaced after
every few batches; what a killed process wrote beyond that is cut off. meta.json comes last.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from dss_jax.data.token_files import file_sum
from dss_jax.errors import UserError
from dss_jax.storage import locks
from dss_jax.storage.atomic import make_folder, remove, sync, write_text, writing
from dss_jax.storage.files import is_url
from dss_jax.teachers.logit_files import META, LogitMeta, LogitSettings, check_files, read_meta

_JOURNAL, _LOCK = "journal.json", ".lock"
# What is written is on the disk after so many batches.
COMMIT_BATCHES = 8


class LogitWriter:
  """The columns of an unfinished folder.

  Attributes:
    settings: what they depend on.
    batches: how many batches they hold.
    aligned: how many of their positions have a teacher's distribution.
  """

  def __init__(self, folder: pathlib.Path, settings: LogitSettings, batch_size: int):
    """Opens a folder that is locked, and cuts off what the journal does not know."""
    self.settings = settings
    self._folder = folder
    self._about = _about(settings, batch_size)
    journal = _read_journal(folder, self._about) or {"batches": 0, "aligned": 0, "sizes": {}}
    self.batches, self.aligned = journal["batches"], journal["aligned"]
    self._files: dict[str, IO[bytes]] = {}
    for column in settings.columns:
      path = folder / settings.file_of(column)
      with writing(path):
        path.touch()
        os.truncate(path, journal["sizes"].get(path.name, 0))
        self._files[column] = path.open("ab")

  def append(self, columns: Mapping[str, np.ndarray], aligned: int) -> None:
    """Adds the columns of a batch."""
    for name, file in self._files.items():
      with writing(file.name):
        file.write(columns[name].tobytes())
    self.batches += 1
    self.aligned += aligned
    if self.batches % COMMIT_BATCHES == 0:
      self._commit()

  def finish(self, teacher_model: str, tokens: int) -> LogitMeta:
    """Writes meta.json, by which the folder is finished; returns it."""
    self._commit()
    files = {name: file_sum(self._folder / name) for name in self._sizes()}
    meta = LogitMeta(self.settings, teacher_model, tokens, self.aligned, files)
    write_text(self._folder / META, meta.to_json())
    remove(self._folder / _JOURNAL)
    return meta

  def close(self) -> None:
    for file in self._files.values():
      # What cannot be written has been said by _commit.
      with contextlib.suppress(OSError):
        file.close()

  def _sizes(self) -> dict[str, int]:
    return {os.path.basename(file.name): file.tell() for file in self._files.values()}

  def _commit(self) -> None:
    for file in self._files.values():
      with writing(file.name):
        file.flush()
        sync(file)
    journal = {
      **self._about,
      "batches": self.batches,
      "aligned": self.aligned,
      "sizes": self._sizes(),
    }
    write_text(self._folder / _JOURNAL, json.dumps(journal, indent=2) + "\n")


def check_output(output: str, settings: LogitSettings, batch_size: int) -> LogitMeta | None:
  """Returns the meta.json of a folder that holds these next tokens already, and whole.

  Raises UserError if the folder holds anything else than these next tokens, finished or not.
  """
  if not output or is_url(output):
    what = "is a URL, but next tokens are memory-mapped" if output else "is an empty name"
    raise UserError(f"--output {output}: {what}; give the name of a local folder")
  folder = pathlib.Path(output)
  if not folder.exists():
    return None
  if not folder.is_dir():
    raise UserError(f"--output {output}: is a file; give the name of a folder")
  if (folder / META).exists():
    meta = read_meta(folder)
    _refuse_others(folder, dataclasses.asdict(meta.settings), dataclasses.asdict(settings))
    check_files(folder, meta)
    return meta
  about = _about(settings, batch_size)
  if _read_journal(folder, about) is None:
    own = {_LOCK, *map(settings.file_of, settings.columns)}
    strangers = sorted(entry.name for entry in folder.iterdir() if entry.name not in own)
    if strangers:
      raise UserError(
        f"--output {output}: holds {strangers[0]!r} but no next tokens; give a new or empty folder"
      )
  return None


@contextlib.contextmanager
def locked(output: str) -> Iterator[pathlib.Path]:
  """Creates the folder if needed, and locks it for one writer at a time."""
  folder = pathlib.Path(output)
  make_folder(folder)
  refusal = (
    f"--output {output}: another process is writing there; wait for it, or give another folder"
  )
  with locks.locked(folder / _LOCK, refusal):
    yield folder


def _about(settings: LogitSettings, batch_size: int) -> dict[str, Any]:
  """Returns what an unfinished folder must have been begun with, as JSON values."""
  return {**dataclasses.asdict(settings), "batch_size": batch_size}


def _read_journal(folder: pathlib.Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns the journal, None if there is none; raises UserError if it is of something else."""
  path = folder / _JOURNAL
  try:
    journal = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    return None
  except (OSError, ValueError):
    journal = {}
  if not {*about, "batches", "aligned", "sizes"} <= set(journal):
    raise UserError(f"--output {folder}: {_JOURNAL} is damaged; remove the folder, and start again")
  _refuse_others(folder, journal, about)
  return journal


def _refuse_others(folder: pathlib.Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
  for name, value in new.items():
    if old[name] != value:
      raise UserError(
        f"--output {folder}: holds other next tokens: {name} was {old[name]!r}, is {value!r}; "
        "give a new folder, or the same flags to go on"
      )
