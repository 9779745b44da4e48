"""What a batch prediction has answered, kept until its files are written.

A line of JSON for each window of rows: a digest of the rows, and the lines of the two files that
they gave. A killed server leaves whole lines and at most one that is not; the next one goes on
after them.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import IO

from dss_jax.storage.atomic import atomic_target, make_folder, remove, sync, writing
from dss_jax.storage.sealed import SUFFIX, DataKey, SealedLog, open_sealed


class BatchJournal:
  """The answers of one batch prediction.

  Attributes:
    counts: the numbers of lines that were answered, and of those that could not be.
  """

  def __init__(self, path: pathlib.Path, key: DataKey | None):
    """Opens the journal, or begins it.

    Args:
      key: encrypts it.

    Raises UserError if it cannot be read or written.
    """
    self._path = pathlib.Path(f"{path}{SUFFIX}") if key else path
    self._key = key
    make_folder(path.parent)
    self._digests: list[str] = []
    self.counts = [0, 0]
    self._begin()

  def resume(self, digests: Iterator[str]) -> bool:
    """Takes the windows that are answered from the digests of all windows.

    If they are others, as when the rows were changed, everything is forgotten and False returned.
    """
    if all(next(digests, None) == each for each in self._digests):
      return True
    self.remove()
    self._digests, self.counts = [], [0, 0]
    self._begin()
    return False

  def add(self, digest: str, answers: list[str], errors: list[str]) -> None:
    """Adds a window, which is on the disk when it returns."""
    line = _line(digest, answers, errors)
    if isinstance(self._log, SealedLog):
      self._log.append([line])
    else:
      with writing(self._path):
        self._log.write(line)
        self._log.flush()
        sync(self._log)
    self._count(digest, answers, errors)

  def lines(self, kind: int) -> Iterator[bytes]:
    """Yields the lines of the file of answers (0) or of errors (1)."""
    for window in self._windows():
      for line in window[1 + kind]:
        yield line.encode("utf-8")

  def close(self) -> None:
    self._log.close()

  def remove(self) -> None:
    """Removes the journal; nothing is kept."""
    self.close()
    remove(self._path)

  def _begin(self) -> None:
    """Writes the whole lines that there are anew, and opens the file to append to."""
    self._log: SealedLog | IO[bytes]
    content = (self._counted(window) for window in self._windows())
    if self._key is not None:
      self._log = SealedLog(self._path, self._key, self._path.name, content)
      return
    with atomic_target(self._path) as file, writing(self._path):
      for line in content:
        file.write(line)
    self._log = self._path.open("ab")

  def _counted(self, window: tuple[str, list[str], list[str]]) -> bytes:
    self._count(*window)
    return _line(*window)

  def _count(self, digest: str, answers: list[str], errors: list[str]) -> None:
    self._digests.append(digest)
    self.counts[0] += len(answers)
    self.counts[1] += len(errors)

  def _windows(self) -> Iterator[tuple[str, list[str], list[str]]]:
    if not self._path.exists():
      return
    with self._opened() as file:
      for line in file:
        if not line.endswith(b"\n"):
          return
        digest, answers, errors = json.loads(line)
        yield digest, answers, errors

  def _opened(self) -> IO[bytes]:
    key = self._key
    if key is None:
      return self._path.open("rb")
    return open_sealed(self._path, lambda header: key, owner=key.owner, name=self._path.name)


def _line(digest: str, answers: list[str], errors: list[str]) -> bytes:
  return json.dumps([digest, answers, errors], ensure_ascii=False).encode("utf-8") + b"\n"
