"""A teacher that returns the recorded answers of a file."""

import json
import os
import tempfile

from dss_jax.errors import UserError
from dss_jax.storage.files import PathLike, open_bytes
from dss_jax.teachers.base import RequestFailed, TeacherRequest, TeacherResponse


class RecordedTeacher:
  """Returns answers that were recorded earlier: lines of {"index": row, "llm_output": text}.

  The texts are copied to a temporary file; only their offsets are kept in memory.
  """

  is_recorded = True

  def __init__(self, path: PathLike):
    """Reads the file once; raises UserError if a line is not a recorded answer."""
    self.name = f"recorded:{os.path.basename(os.fspath(path))}"
    self._path = os.fspath(path)
    # Row number -> (offset, length in bytes).
    self._spans: dict[int, tuple[int, int]] = {}
    # Deleted when it is closed.
    self._texts = tempfile.TemporaryFile(prefix="dss_recorded_")  # noqa: SIM115
    try:
      with open_bytes(path) as file:
        for line, raw in enumerate(file, start=1):
          if raw.strip():
            self._add(raw, line)
    except UserError:
      self._texts.close()
      raise

  async def ask(self, request: TeacherRequest) -> TeacherResponse:
    span = self._spans.get(request.index)
    if span is None:
      raise RequestFailed(f"no recorded answer to row {request.index} (from 0)")
    self._texts.seek(span[0])
    return TeacherResponse(self._texts.read(span[1]).decode("utf-8"))

  async def close(self) -> None:
    self._texts.close()

  def _add(self, raw: bytes, line: int) -> None:
    try:
      values = json.loads(raw)
      index, text = values["index"], values["llm_output"]
    except (ValueError, RecursionError, KeyError, TypeError):
      index = text = None
    if type(index) is not int or index < 0 or not isinstance(text, str):
      raise UserError(
        f'{self._path}:{line}: not a recorded answer; each line must be {{"index": row number'
        ' from 0, "llm_output": text}'
      )
    if index in self._spans:
      raise UserError(f'{self._path}:{line}: the "index" {index} appears twice; keep one answer')
    encoded = text.encode("utf-8", "replace")
    self._spans[index] = (self._texts.tell(), len(encoded))
    self._texts.write(encoded)
