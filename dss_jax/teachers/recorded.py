"""A teacher whose answers were recorded in a file."""

import json
import os
import tempfile

from dss_jax.errors import UserError
from dss_jax.storage.files import PathLike, open_bytes
from dss_jax.teachers.base import RequestFailed, TeacherRequest, TeacherResponse


class RecordedTeacher:
  """Answers that were recorded earlier: lines of {"index": row, "llm_output": text}.

  The texts are copied to a temporary file; memory holds a place a row.
  """

  is_recorded = True
  retries = 0

  def __init__(self, path: PathLike):
    """Reads the file once; raises UserError where a line is no recorded answer."""
    self.name = f"recorded:{os.path.basename(os.fspath(path))}"
    self._path = os.fspath(path)
    self._places: dict[int, tuple[int, int]] = {}
    # Removed by the system when it is closed.
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
    place = self._places.get(request.index)
    if place is None:
      raise RequestFailed(f"no answer to row {request.index} (from 0) is recorded")
    self._texts.seek(place[0])
    return TeacherResponse(self._texts.read(place[1]).decode("utf-8"))

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
        f'{self._path}:{line}: not a recorded answer; each line is {{"index": number of the row'
        ' from 0, "llm_output": text}'
      )
    if index in self._places:
      raise UserError(f'{self._path}:{line}: the "index" {index} stands twice; keep one answer')
    encoded = text.encode("utf-8", "replace")
    self._places[index] = (self._texts.tell(), len(encoded))
    self._texts.write(encoded)
