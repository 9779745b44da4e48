"""The journal: an append-only JSONL file of all answers, safe against kills.

An answer is written before the run uses it, so a killed process loses none. It is synced to disk
(fsync) milliseconds later, so a power failure loses almost none; answers that arrive together
share one fsync, which is slow. Opening the journal drops an incomplete last line. Answers are
found by their keys.
"""

import concurrent.futures
import hashlib
import json
import os
import time
from typing import Any, NamedTuple

import numpy as np

from dss_jax.errors import UserError
from dss_jax.storage.atomic import sync, writing
from dss_jax.storage.files import PathLike, reason
from dss_jax.storage.locks import try_lock
from dss_jax.teachers.base import TeacherRequest, TeacherResponse

# Size of the dictionary of new entries, before they are merged into the sorted arrays.
_MAX_RECENT = 8192
# Answers that arrive within this time share one fsync.
_SYNC_SECONDS = 0.005


class Entry(NamedTuple):
  """An answer and its time (ISO 8601, UTC)."""

  response: TeacherResponse
  time: str


def key_of(teacher: str, prompt_digest: str, request: TeacherRequest) -> str:
  """Returns the key of a request: 32 hexadecimal digits.

  It depends on everything that is sent: teacher, filled prompt (with the row and the label that
  it shows), stop sequences, length, temperature and sample number. It does not depend on the
  parse rules.
  """
  values = [
    teacher,
    prompt_digest,
    request.messages,
    request.text,
    request.input_text,
    request.stop,
    request.max_tokens,
    request.temperature,
    request.sample,
  ]
  return hashlib.sha256(json.dumps(values).encode("ascii")).hexdigest()[:32]


class Journal:
  """The answers of one output file; only one run can open it at a time."""

  def __init__(self, path: PathLike):
    """Opens or creates the journal, and drops an incomplete last line.

    Raises:
      UserError: the file cannot be written, or another run is writing it.
    """
    self.path = os.fspath(path)
    with writing(self.path):
      self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
      if not try_lock(self._file):
        os.close(self._file)
        raise UserError(
          f"{self.path}: another run is writing these answers; wait for it, or give another"
          " --output"
        )
    self.unreadable_lines = 0
    self._index = _Index()
    self._end = 0
    self._recover()
    self._sync_is_queued = False
    self._sync_error: UserError | None = None
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "journal")

  def __len__(self) -> int:
    return len(self._index)

  def get(self, key: str) -> Entry | None:
    """Returns the answer with this key, or None."""
    span = self._index.get(key)
    if span is None:
      return None
    line = os.pread(self._file, span[1], span[0])
    values = _entry(line)
    # The index has only half of the key.
    return None if values is None or values["key"] != key else _from_values(values)

  def append(self, key: str, response: TeacherResponse) -> Entry:
    """Writes an answer; raises UserError if that fails."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    values = {
      "key": key,
      "time": now,
      "text": response.text,
      "finish": response.finish,
      "prompt_tokens": response.prompt_tokens,
      "completion_tokens": response.completion_tokens,
      "model": response.model,
      **({"remark": response.remark} if response.remark else {}),
    }
    line = json.dumps(values, ensure_ascii=False).encode("utf-8") + b"\n"
    try:
      with writing(self.path):
        rest = memoryview(line)
        while rest:
          rest = rest[os.write(self._file, rest) :]
    except UserError:
      # Removes the incomplete line, which would corrupt the next one.
      os.ftruncate(self._file, self._end)
      raise
    self._index.add(key, self._end, len(line))
    self._end += len(line)
    if self._sync_error is not None:
      raise self._sync_error
    if not self._sync_is_queued:
      self._sync_is_queued = True
      self._thread.submit(self._sync)
    return Entry(response, now)

  def close(self) -> None:
    """Syncs the last answers; raises UserError if that fails."""
    self._thread.shutdown()
    os.close(self._file)
    if self._sync_error is not None:
      raise self._sync_error

  def _sync(self) -> None:
    time.sleep(_SYNC_SECONDS)
    # Cleared first, because fsync may not cover answers that are appended during the call.
    self._sync_is_queued = False
    try:
      with writing(self.path):
        sync(self._file)
    except UserError as error:
      self._sync_error = error

  def _recover(self) -> None:
    whole = offset = 0
    try:
      with open(self.path, "rb") as file:
        for line in file:
          if line.endswith(b"\n"):
            values = _entry(line)
            if values is None:
              self.unreadable_lines += 1
            else:
              self._index.add(values["key"], offset, len(line))
            whole = offset + len(line)
          offset += len(line)
      if whole < offset:
        os.ftruncate(self._file, whole)
        sync(self._file)
    except OSError as error:
      raise UserError(f"{self.path}: cannot be read ({reason(error)}); check the disk") from None
    self._end = whole


class _Index:
  """Key -> (offset, length in bytes), 20 bytes per answer; a later answer replaces an earlier."""

  def __init__(self) -> None:
    self._keys = np.zeros(0, np.uint64)
    self._offsets = np.zeros(0, np.int64)
    self._lengths = np.zeros(0, np.int32)
    self._recent: dict[int, tuple[int, int]] = {}

  def __len__(self) -> int:
    known = sum(self._find(key) is not None for key in self._recent)
    return len(self._keys) + len(self._recent) - known

  def add(self, key: str, offset: int, length: int) -> None:
    self._recent[int(key[:16], 16)] = (offset, length)
    if len(self._recent) >= _MAX_RECENT:
      self._merge()

  def get(self, key: str) -> tuple[int, int] | None:
    number = int(key[:16], 16)
    found = self._recent.get(number)
    if found is not None:
      return found
    position = self._find(number)
    return (
      None if position is None else (int(self._offsets[position]), int(self._lengths[position]))
    )

  def _find(self, number: int) -> int | None:
    position = int(np.searchsorted(self._keys, np.uint64(number)))
    return position if position < len(self._keys) and int(self._keys[position]) == number else None

  def _merge(self) -> None:
    spans = np.array(list(self._recent.values()), np.int64)
    keys = np.concatenate([np.array(list(self._recent), np.uint64), self._keys])
    # np.unique keeps the first of equal keys, which is the recent one.
    self._keys, kept = np.unique(keys, return_index=True)
    self._offsets = np.concatenate([spans[:, 0], self._offsets])[kept]
    self._lengths = np.concatenate([spans[:, 1].astype(np.int32), self._lengths])[kept]
    self._recent = {}


def _entry(line: bytes) -> dict[str, Any] | None:
  """Returns the values of a line, or None if it is not an entry."""
  try:
    values = json.loads(line)
    key = values["key"]
    int(key[:16], 16)
    is_entry = len(key) == 32 and isinstance(values["text"], str)
    values["text"].encode("utf-8")
  except (ValueError, RecursionError, KeyError, TypeError):
    return None
  return values if is_entry else None


def _from_values(values: dict[str, Any]) -> Entry:
  response = TeacherResponse(
    text=values["text"],
    finish=_text(values.get("finish")),
    prompt_tokens=_count(values.get("prompt_tokens")),
    completion_tokens=_count(values.get("completion_tokens")),
    model=_text(values.get("model")),
    remark=_text(values.get("remark")),
  )
  return Entry(response, _text(values.get("time")) or "")


def _text(value: Any) -> str | None:
  return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
  return value if type(value) is int and value >= 0 else None
