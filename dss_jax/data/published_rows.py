"""The rows of a published file, as a task's to_row makes them."""

import json
import os
from collections.abc import Iterator, Mapping

from dss_jax.data.records import Row
from dss_jax.data.task_files import TaskDefinition, failure_of, place_of
from dss_jax.data.texts import is_blank, is_unicode, label_as_text
from dss_jax.errors import UserError
from dss_jax.progress import say
from dss_jax.storage.files import PathLike, open_bytes

_SHOWN_LINES = 5
_TEXTS = ("input_text", "output_text", "rationale")


class PublishedRows:
  """All rows of one published file, as a task reads them, whatever the split.

  Each iteration reads the file; the first that comes to its end says which rows have no label and
  which are left out.

  Raises:
    UserError: as load_rows does for a row; the file cannot be read, or has no row.
  """

  def __init__(self, task: TaskDefinition, path: PathLike, labels_as_text: bool = False):
    self._task = task
    self._path = os.fspath(path)
    self._labels_as_text = labels_as_text
    self._is_said = False

  def __iter__(self) -> Iterator[Row]:
    return (row for _, row in self.numbered())

  def numbered(self) -> Iterator[tuple[int, Row]]:
    """Yields (number of the row in the file, from 0, as recorded answers count them; row)."""
    reader = RowReader(self._task, self._path, self._labels_as_text)
    is_empty = True
    for number, (line, values) in enumerate(read_objects(self._path)):
      row = reader.row(line, values)
      if row is not None:
        is_empty = False
        yield number, row
    if is_empty:
      raise UserError(f"{self._path}: no rows; give a file of task {self._task.name}")
    if not self._is_said:
      self._is_said = True
      reader.say()


class RowReader:
  """Converts the published rows of a file by the task's to_row, and checks the results.

  Attributes:
    left_out: the lines for which to_row gives None.
    unlabelled: the lines whose row has no label.
  """

  def __init__(self, task: TaskDefinition, path: str, labels_as_text: bool):
    self._task = task
    self._path = path
    self._labels_as_text = labels_as_text
    self.left_out: list[int] = []
    self.unlabelled: list[int] = []

  def row(self, line: int, values: dict) -> Row | None:
    """Returns the row of a line; None if it is left out."""
    task, place = self._task, f"{self._path}:{line}"
    try:
      row = task.to_row(values)
    except (Exception, SystemExit) as error:
      raise UserError(
        f"{place}: task {task.name} cannot read this row with the keys {sorted(values)}"
        f" ({failure_of(task.to_row, error)}); check that --data-dir has the files of this task,"
        " or correct to_row"
      ) from error
    if row is None:
      self.left_out.append(line)
      return None
    if not isinstance(row, Mapping):
      raise UserError(
        f"{place}: to_row of task {task.name} ({place_of(task.to_row)}) gives a"
        f" {type(row).__name__}; it must give a dict, or None to leave the row out"
      )
    row = {key: value for key, value in row.items() if value is not None or key not in _TEXTS}
    if self._labels_as_text and "output_text" in row:
      row["output_text"] = label_as_text(row["output_text"])
    self._check(row, place)
    if "output_text" not in row:
      self.unlabelled.append(line)
    return row

  def say(self) -> None:
    """Prints which rows are left out and which have no label."""
    for lines, what in (
      (self.left_out, "left out, as the task's to_row says"),
      (self.unlabelled, "without a label"),
    ):
      if lines:
        shown = ", ".join(map(str, lines[:_SHOWN_LINES]))
        more = ", ..." if len(lines) > _SHOWN_LINES else ""
        s = "" if len(lines) == 1 else "s"
        say(f"{self._path}: {len(lines):,} row{s} {what} (line{s} {shown}{more})")

  def _check(self, row: Row, place: str) -> None:
    for key in _TEXTS:
      text = row.get(key)
      if key not in row and key != "input_text":
        continue
      if not isinstance(text, str) or is_blank(text) or not is_unicode(text):
        is_number = key == "output_text" and label_as_text(text) is not text
        mend = ", or give --labels-as-text" if is_number else ""
        raise UserError(
          f'{place}: task {self._task.name} made a row whose "{key}" is {text!r}; it must be text'
          f" that is not empty; correct the file, or to_row in the task file{mend}"
        )
    try:
      json.dumps(row, allow_nan=False)
    except (TypeError, ValueError) as error:
      raise UserError(
        f"{place}: task {self._task.name} made a row that cannot be written as JSON ({error});"
        f" correct to_row ({place_of(self._task.to_row)})"
      ) from None


def read_objects(path: str) -> Iterator[tuple[int, dict]]:
  """(line number, JSON object) of each line of a published file; blank lines are skipped."""
  with open_bytes(path) as file:
    for line, text in enumerate(file, start=1):
      if not text.strip():
        continue
      try:
        values = json.loads(text.decode("utf-8-sig" if line == 1 else "utf-8"))
      except (ValueError, RecursionError) as error:
        raise UserError(
          f"{path}:{line}: the line is not JSON in UTF-8 ({error}); fetch the published file again"
        ) from None
      if not isinstance(values, dict):
        raise UserError(
          f"{path}:{line}: the line is a {type(values).__name__}, but each line must be"
          " a JSON object; fetch the published file again"
        )
      yield line, values
