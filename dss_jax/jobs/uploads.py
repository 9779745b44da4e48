"""Data sets that people upload: files under the server's root, which jobs name as upload://ID.

Names from outside are shown, never used as paths. An upload appears whole or not at all.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import re
import secrets
from collections.abc import Collection
from typing import IO

from dss_jax.jobs.api_error import ApiError, not_found
from dss_jax.jobs.store import now
from dss_jax.serving.errors import Refused
from dss_jax.storage.atomic import make_folder, publishing, synced_file, withdraw, write_text
from dss_jax.terminal import printable

SCHEME = "upload://"
_ROWS, _CARD = "rows.jsonl", "upload.json"
_ID = re.compile(r"[0-9a-f]{24}")
_NAME_CHARACTERS = 120
_CHUNK_BYTES = 2**20
_ZIPPED = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True)
class Upload:
  """A file that somebody uploaded.

  Attributes:
    name: that it had there.
    user: who uploaded it.
  """

  id: str
  name: str
  size_bytes: int
  create_time: str
  user: str

  @property
  def uri(self) -> str:
    return SCHEME + self.id


def upload_path(folder: str, project: str, uri: str) -> str | None:
  """Returns the path that an upload's URI means; None unless it is one."""
  own = uri.removeprefix(SCHEME)
  return os.path.join(folder, project, own, _ROWS) if _ID.fullmatch(own) else None


class Uploads:
  """The uploads under a folder, by project."""

  def __init__(self, folder: str, max_bytes: int):
    self._folder = pathlib.Path(folder)
    self.max_bytes = max_bytes

  def add(self, project: str, name: str, content: IO[bytes], user: str) -> Upload:
    """Stores a file; raises Refused for one that is too large, empty or compressed."""
    base = re.split(r"[/\\]", name)[-1][:_NAME_CHARACTERS]
    own = secrets.token_hex(12)
    make_folder(self._folder / project)
    with publishing(self._folder / project / own) as folder:
      size = self._copy(content, folder / _ROWS)
      upload = Upload(own, printable(base) or "unnamed", size, now(), user)
      write_text(folder / _CARD, json.dumps(dataclasses.asdict(upload)))
    return upload

  def _copy(self, content: IO[bytes], path: pathlib.Path) -> int:
    size = 0
    with synced_file(path) as target:
      while chunk := content.read(_CHUNK_BYTES):
        if not size and chunk.startswith(_ZIPPED):
          # Its size says nothing of the rows within.
          raise Refused(415, "the file is compressed; upload JSON lines as they are")
        size += len(chunk)
        if size > self.max_bytes:
          raise Refused(
            413, f"the file has more than {self.max_bytes:,} bytes; use one below a bucket instead"
          )
        target.write(chunk)
    if not size:
      raise Refused(400, "the file is empty; choose one with JSON lines")
    return size

  def list(self, project: str) -> list[Upload]:
    """Returns the uploads of a project, newest first."""
    folder = self._folder / project
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [each for name in names if _ID.fullmatch(name) and (each := self._read(project, name))]
    return sorted(found, key=lambda each: each.create_time, reverse=True)

  def get(self, project: str, own: str) -> Upload:
    """Returns an upload by its id; raises ApiError NOT_FOUND."""
    found = self._read(project, own) if _ID.fullmatch(own) else None
    if found is None:
      raise not_found(f"upload {own[:40]}")
    return found

  def path(self, project: str, upload: Upload) -> str:
    """Returns where the rows of an upload are."""
    return str(self._folder / project / upload.id / _ROWS)

  def delete(self, project: str, own: str, in_use: Collection[str]) -> None:
    """Deletes an upload; raises ApiError if a job that has not ended reads it.

    Args:
      in_use: the paths that such jobs read.
    """
    upload = self.get(project, own)
    if self.path(project, upload) in in_use:
      raise ApiError(
        "FAILED_PRECONDITION", f"{upload.name}: a job reads it; delete it when the job has ended"
      )
    withdraw(self._folder / project / own)

  def tidy(self, oldest: datetime.datetime, in_use: Collection[str]) -> None:
    """Deletes what was uploaded before a time and no job reads."""
    for folder in self._folder.iterdir() if self._folder.is_dir() else ():
      for upload in self.list(folder.name):
        is_old = datetime.datetime.fromisoformat(upload.create_time) < oldest
        if is_old and self.path(folder.name, upload) not in in_use:
          withdraw(folder / upload.id)

  def _read(self, project: str, own: str) -> Upload | None:
    try:
      text = (self._folder / project / own / _CARD).read_text(encoding="utf-8")
    except FileNotFoundError:
      return None
    return Upload(**json.loads(text))
