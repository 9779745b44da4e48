"""Rows of a data set: one JSON object a line, read as a stream, every bad line named.

A row is `{"input_text": str, "output_text"?: str, "rationale"?: str}`; other keys are kept
and passed through. Files are UTF-8 (a byte-order mark is tolerated), lines end in a line
feed, with or without a carriage return, a name ending in `.gz` means gzip, and a URL
(`gs://`, `s3://`, `https://`, ...) is read through fsspec.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from dss_jax.errors import UserError
from dss_jax.storage.files import (
  BrokenStreamError,
  PathLike,
  atomic_target,
  open_bytes,
  reason,
  writing,
)
from dss_jax.storage.files import open_text as open_text

Row = dict[str, Any]

MAX_LINE_BYTES = 10 * 2**20
SHOWN_PROBLEMS = 20

_BOM = b"\xef\xbb\xbf"
_SKIP_BYTES = 2**20
_EMPTY_MEND = {
  "input_text": "give the text of the example, or delete the line",
  "output_text": "give a label, or drop the key to let the teacher label it",
  "rationale": "give the reasoning, or drop the key to let the teacher write it",
}
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
  """One line that is no row: where it stands, what is wrong, what is allowed, how to mend it."""

  path: str
  line: int
  what: str

  def __str__(self) -> str:
    return f"{self.path}:{self.line}: {self.what}"


class ProblemTally:
  """The first problems in full and the number of all: constant memory for any number of them."""

  def __init__(self) -> None:
    self.first: list[RowProblem] = []
    self.total = 0

  def add(self, problem: RowProblem) -> None:
    self.total += 1
    if len(self.first) < SHOWN_PROBLEMS:
      self.first.append(problem)

  def raise_if_any(self) -> None:
    """Raises UserError with all that was added; does nothing when nothing was."""
    if self.total:
      raise problems_error(self.first, self.total)


def problems_error(problems: Sequence[RowProblem], total: int) -> UserError:
  """The error that lists `problems`, 20 at most, a line each, and how many of `total` are left."""
  shown = [str(problem) for problem in problems[:SHOWN_PROBLEMS]]
  more = total - len(shown)
  if more > 0:
    shown.append(f"and {more:,} more bad line{'s' if more > 1 else ''}")
  return UserError("\n".join(shown))


def scan_rows(path: PathLike) -> Iterator[tuple[int, Row] | RowProblem]:
  """Every line of the file in order: (line number from 1, row) if good, a RowProblem if not.

  Streams in constant memory; nothing in the file makes it raise. Blank lines at the end of
  the file are tolerated, any other blank line is a problem. A broken gzip stream is the
  problem of the line it breaks in, and the last. A line may have 10 MiB at most.

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
      row = _TOO_LONG if is_too_long else _parse(raw)
      yield RowProblem(name, line, row) if isinstance(row, str) else (line, row)


def numbered_rows(path: PathLike) -> Iterator[tuple[int, Row]]:
  """(line number from 1, row) of every good line; then all problems of the file, in one error.

  Raises:
    UserError: at the end of the file, if a line was bad or there was no row at all, and as
      scan_rows does.
  """
  problems = ProblemTally()
  is_empty = True
  for item in scan_rows(path):
    if isinstance(item, RowProblem):
      problems.add(item)
    else:
      is_empty = False
      yield item
  problems.raise_if_any()
  if is_empty:
    raise UserError(empty_file_problem(path))


def empty_file_problem(path: PathLike) -> str:
  """The sentence for a file without a single row."""
  return f'{os.fspath(path)}: no rows; give at least one line like {{"input_text": "..."}}'


def read_rows(path: PathLike) -> Iterator[Row]:
  """Every good row of the file; raises as numbered_rows does."""
  return (row for _, row in numbered_rows(path))


def check_rows(path: PathLike) -> int:
  """The number of rows of a file in which every line is good; raises as numbered_rows does."""
  return sum(1 for _ in numbered_rows(path))


def write_rows(path: PathLike, rows: Iterable[Row]) -> int:
  """Writes rows as they come, one JSON object a line, and returns how many there were.

  The file appears under its name only when it is whole (see files.atomic_target), gzipped if
  its name ends in `.gz`.

  Raises:
    UserError: the target cannot be written, or a row holds what JSON or UTF-8 cannot (NaN,
      half of a surrogate pair). Whatever `rows` raises passes through. Either way the target
      is as it was.
  """
  name = os.fspath(path)
  count = 0
  with atomic_target(name) as binary:
    for count, row in enumerate(rows, start=1):
      try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")
      except ValueError as error:
        raise UserError(
          f"{name}: row {count} cannot be written as JSON in UTF-8 ({reason(error)});"
          " mend or drop the row"
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
  """The next line, or the start of one that is too long, the rest of which is skipped."""
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
  """What JSON allows and a row must not have."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  row = dict(pairs)
  if len(row) != len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise _BadJson(f"the key {_quoted(twice)} stands twice in one object; keep one of them")
  return row


def _no_constant(name: str) -> Any:
  raise _BadJson(f"{name} is not JSON; write a number, a string or null in its place")


def _finite(digits: str) -> float:
  number = float(digits)
  if math.isinf(number):
    raise _BadJson(f"the number {digits[:40]} is too large to be kept; write it as a string")
  return number


_DECODER = json.JSONDecoder(
  object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite
)


def _parse(raw: bytes) -> Row | str:
  """The row of one line, or the sentence that says why it is none."""
  try:
    row = _DECODER.decode(raw.decode("utf-8"))
  except UnicodeDecodeError as error:
    what = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8"
    return f"{what} (byte 0x{raw[error.start]:02x} at {error.start}); save the file as UTF-8"
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
  return _field_problem(row) or (_surrogate_problem(row) if b"\\u" in raw else None) or row


def _field_problem(row: Row) -> str | None:
  if "input_text" not in row:
    found = ", ".join(_quoted(key) for key in list(row)[:5]) or "no keys"
    return f'"input_text" is missing (found {found}); name the text of the example so'
  for key, mend in _EMPTY_MEND.items():
    value = row.get(key, "-")
    if not isinstance(value, str):
      return f'"{key}" is {_JSON_NAMES[type(value)]}, not a string; {mend}'
    if not value or value.isspace():
      return f'"{key}" is empty; {mend}'
  return None


def _surrogate_problem(row: Row) -> str | None:
  # "\ud83d" alone is legal JSON, but no UTF-8 file and no tokenizer can hold it.
  try:
    json.dumps(row, ensure_ascii=False).encode("utf-8")
  except (UnicodeEncodeError, ValueError, RecursionError) as error:
    half = error.object[error.start] if isinstance(error, UnicodeEncodeError) else ""
    name = f"\\u{ord(half):04x}" if half else reason(error)
    return f"{name} is half of a character (a surrogate without its twin); write both or neither"
  return None


def _quoted(text: str) -> str:
  """JSON of the text in ASCII, cut to 60 characters: safe in any terminal."""
  return json.dumps(text if len(text) <= 60 else text[:57] + "...")
