"""Reading and writing of rows: one JSON object a line, streamed, every bad line named.

A row is `{"input_text": str, "output_text"?: str, "rationale"?: str}`; other keys are kept
and passed through. Files are UTF-8, with or without a byte-order mark; lines end in a line
feed, with or without a carriage return. Gzip is known by its first bytes, `-` is standard input,
and a URL (`gs://`, `s3://`, `https://`, ...) is read through fsspec.

With `labels_as_text`, an "output_text" that is a number or a boolean is taken as its text.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

from dss_jax.data.texts import is_blank, label_as_text
from dss_jax.errors import UserError
from dss_jax.storage.atomic import atomic_target, writing
from dss_jax.storage.files import (
  BrokenStreamError,
  PathLike,
  open_bytes,
  reason,
)

Row = dict[str, Any]

MAX_LINE_BYTES = 10 * 2**20
SHOWN_PROBLEMS = 20

_BOM = b"\xef\xbb\xbf"
_SKIP_BYTES = 2**20
_FIELD_FIXES = {
  "input_text": "give the text of the example, or delete the line",
  "output_text": "give a label, or drop the key to let the teacher label it",
  "rationale": "give the reasoning, or drop the key to let the teacher write it",
}
_TO_QUOTE = "write it in quotes"
_LABEL_TO_QUOTE = f"{_TO_QUOTE}, or give --labels-as-text to take such labels as text"
_JSON_NAMES = {
  dict: "an object",
  list: "an array",
  str: "a string",
  bool: "a boolean",
  int: "a number",
  float: "a number",
  type(None): "null",
}


class RowProblem(NamedTuple):
  """A line that is not a row: its place, and what is wrong, with the fix."""

  path: str
  line: int
  what: str

  def __str__(self) -> str:
    return f"{self.path}:{self.line}: {self.what}"


class ProblemTally:
  """Counts problems and keeps the first of them, in constant memory."""

  def __init__(self) -> None:
    self.first: list[RowProblem] = []
    self.total = 0

  def add(self, problem: RowProblem) -> None:
    self.total += 1
    if len(self.first) < SHOWN_PROBLEMS:
      self.first.append(problem)

  def raise_if_any(self) -> None:
    """Raises UserError if a problem was added: the first 20, a line each, and how many more."""
    if not self.total:
      return
    lines = [str(problem) for problem in self.first]
    more = self.total - len(lines)
    if more:
      lines.append(f"and {more:,} more bad line{'s' if more > 1 else ''}")
    raise UserError("\n".join(lines))


def scan_rows(
  path: PathLike, labels_as_text: bool = False
) -> Iterator[tuple[int, Row] | RowProblem]:
  """Yields, for each line in order, (line number from 1, row), or a RowProblem.

  Streams in constant memory; no content of the file raises. Blank lines are allowed only at
  the end of the file. A broken gzip stream is a problem of the line in which it breaks, another
  format one of the first line; no later line is read. A line may have at most 10 MiB.

  Raises:
    UserError: the file cannot be opened, or its storage fails while it is read.
  """
  name = os.fspath(path)
  with open_bytes(path) as binary:
    first_blank = line = 0
    while True:
      line += 1
      broken = None
      try:
        raw, is_too_long = _read_line(binary)
      except BrokenStreamError as error:
        broken = str(error).removeprefix(f"{name}: ")
      if broken is None:
        if not raw:
          return
        if line == 1 and raw.startswith(_BOM):
          raw = raw[len(_BOM) :]
        if not is_too_long and not raw.strip():
          first_blank = first_blank or line
          continue
      if first_blank:
        for blank in range(first_blank, line):
          yield RowProblem(name, blank, _BLANK)
        first_blank = 0
      if broken is not None:
        yield RowProblem(name, line, broken)
        return
      row = _TOO_LONG if is_too_long else _parse(raw, labels_as_text)
      yield RowProblem(name, line, row) if isinstance(row, str) else (line, row)


def good_rows(
  path: PathLike, problems: ProblemTally, labels_as_text: bool = False
) -> Iterator[tuple[int, Row]]:
  """Yields (line number from 1, row) of every good line; adds the other lines to `problems`."""
  for item in scan_rows(path, labels_as_text):
    if isinstance(item, RowProblem):
      problems.add(item)
    else:
      yield item


def numbered_rows(path: PathLike, labels_as_text: bool = False) -> Iterator[tuple[int, Row]]:
  """Yields (line number from 1, row) of every good line.

  Raises:
    UserError: at the end of the file, if a line was bad (one error lists all problems) or
      there was no row; and as scan_rows does.
  """
  problems = ProblemTally()
  is_empty = True
  for numbered_row in good_rows(path, problems, labels_as_text):
    is_empty = False
    yield numbered_row
  problems.raise_if_any()
  if is_empty:
    raise UserError(empty_file_problem(path))


def empty_file_problem(path: PathLike) -> str:
  """Returns the error message for a file without rows."""
  return f'{os.fspath(path)}: no rows; give at least one line like {{"input_text": "..."}}'


def read_rows(path: PathLike, labels_as_text: bool = False) -> Iterator[Row]:
  """Yields every good row of the file; raises as numbered_rows does."""
  return (row for _, row in numbered_rows(path, labels_as_text))


def check_rows(path: PathLike, labels_as_text: bool = False) -> int:
  """Returns the number of rows if every line is good; raises as numbered_rows does."""
  return sum(1 for _ in numbered_rows(path, labels_as_text))


def write_rows(path: PathLike, rows: Iterable[Row]) -> int:
  """Writes rows as a stream, one JSON object a line, and returns their number.

  The file appears under its name only when it is whole (see atomic_target), gzipped if
  its name ends in `.gz`.

  Raises:
    UserError: the target cannot be written, or a row has a value that JSON or UTF-8 cannot
      represent (NaN, an unpaired surrogate). What `rows` raises passes through. In either
      case the target is unchanged.
  """
  name = os.fspath(path)
  count = 0
  with atomic_target(name) as binary:
    for count, row in enumerate(rows, start=1):
      try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")
      except (TypeError, ValueError) as error:
        raise UserError(
          f"{name}: row {count} cannot be written as JSON in UTF-8 ({reason(error)});"
          " correct or drop the row"
        ) from None
      with writing(name):
        binary.write(line + b"\n")
  return count


_BLANK = "the line is blank; each line is one JSON object; delete it"
_TOO_LONG = (
  f"the line has more than {MAX_LINE_BYTES:,} bytes, the most that one row may have;"
  " shorten the text, or end each row with a line feed"
)


def _read_line(binary: IO[bytes]) -> tuple[bytes, bool]:
  """Returns (the next line, whether it is too long); a line that is too long is skipped."""
  most = MAX_LINE_BYTES + len(b"\r\n")
  raw = binary.readline(most)
  if len(raw) <= MAX_LINE_BYTES:
    return raw, False
  if len(raw.rstrip(b"\r\n")) <= MAX_LINE_BYTES and (raw.endswith(b"\n") or len(raw) < most):
    return raw, False
  rest = raw
  while rest and not rest.endswith(b"\n"):
    rest = binary.readline(_SKIP_BYTES)
  return raw, True


class _BadJson(ValueError):
  """Valid for Python's JSON decoder, but not allowed in a row."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  row = dict(pairs)
  if len(row) != len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise _BadJson(f"the key {_quoted(twice)} appears twice in one object; keep one of them")
  return row


def _no_constant(name: str) -> Any:
  raise _BadJson(f"{name} is not JSON; write a number, a string or null instead")


def _finite(digits: str) -> float:
  number = float(digits)
  if math.isinf(number):
    raise _BadJson(
      f"the number {digits[:40]} is too large for a 64-bit float; write it as a string"
    )
  return number


_DECODER = json.JSONDecoder(
  object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite
)


def _parse(raw: bytes, labels_as_text: bool) -> Row | str:
  """Returns the row of one line, or the message that says why it is not a row."""
  try:
    row = _DECODER.decode(raw.decode("utf-8"))
  except UnicodeDecodeError as error:
    return f"not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start}); save the file as UTF-8"
  except json.JSONDecodeError as error:
    what = " ".join(error.msg.split())
    return (
      f"not JSON ({what} at character {error.colno}: {_quoted(error.doc[error.pos :][:20])});"
      " each line is one JSON object on its own"
    )
  except _BadJson as error:
    return str(error)
  except RecursionError:
    return "the JSON is nested too deeply; a row is a flat object of strings"
  except ValueError:
    # Python refuses to read integers of more than 4,300 digits.
    return "a number has too many digits; shorten it or write it as a string"
  if not isinstance(row, dict):
    return f"{_JSON_NAMES[type(row)]}, not a JSON object; write one object a line"
  if labels_as_text and "output_text" in row:
    row["output_text"] = label_as_text(row["output_text"])
  return _field_problem(row) or (_surrogate_problem(row) if b"\\u" in raw else None) or row


def problem_of(row: Row) -> str | None:
  """Returns what is wrong with a row, and how to correct it, as for a line of a file; else None."""
  line = json.dumps(row).encode("ascii")
  if len(line) > MAX_LINE_BYTES:
    return _TOO_LONG
  found = _parse(line, labels_as_text=False)
  return found if isinstance(found, str) else None


def _field_problem(row: Row) -> str | None:
  if "input_text" not in row:
    found = ", ".join(_quoted(key) for key in list(row)[:5]) or "no keys"
    return f'"input_text" is missing (found {found}); give the text of the example under this key'
  for key, fix in _FIELD_FIXES.items():
    value = row.get(key, "-")
    if isinstance(value, bool | int | float):
      fix = _LABEL_TO_QUOTE if key == "output_text" else _TO_QUOTE
    if not isinstance(value, str):
      return f'"{key}" is {_JSON_NAMES[type(value)]}, not a string; {fix}'
    if is_blank(value):
      invisible = "" if not value or value.isspace() else " (it has only invisible characters)"
      return f'"{key}" is empty{invisible}; {fix}'
  return None


def _surrogate_problem(row: Row) -> str | None:
  # "\ud83d" alone is valid JSON, but cannot be written as UTF-8 or tokenised.
  try:
    json.dumps(row, ensure_ascii=False).encode("utf-8")
  except (UnicodeEncodeError, ValueError, RecursionError) as error:
    half = error.object[error.start] if isinstance(error, UnicodeEncodeError) else ""
    name = f"\\u{ord(half):04x}" if half else reason(error)
    return f"{name} is half of a character (an unpaired surrogate); write both halves or neither"
  return None


def _quoted(text: str) -> str:
  """Returns the text as ASCII JSON, cut to 60 characters: safe in any terminal."""
  return json.dumps(text if len(text) <= 60 else text[:57] + "...")
