"""Review of annotated rows by people: labels and rationales edited, rows left out of training.

Beside annotated.jsonl, which stays as the teacher wrote it, are

- annotated.edits.jsonl: every edit, with who made it and when, appended and synced;
- annotated.reviewed.jsonl: the rows to train on, written when the review is approved;
- annotated.review.json: its figures, and of which rows it is.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dss_jax.annotation.outcome import PROVENANCE, RATIONALES
from dss_jax.annotation.report import read_annotated
from dss_jax.data.records import Row, problem_of, write_rows
from dss_jax.errors import UserError
from dss_jax.storage.atomic import sync, write_text, writing
from dss_jax.storage.files import PathLike
from dss_jax.storage.locks import locked

EDITS, REVIEWED, STAMP = (
  "annotated.edits.jsonl",
  "annotated.reviewed.jsonl",
  "annotated.review.json",
)


class StaleEdit(Exception):
  """The row was edited since it was read."""


@dataclasses.dataclass(frozen=True)
class Edit:
  """What a row says since an edit.

  Attributes:
    row: its line in annotated.jsonl, from 1.
    user: who edited it.
    time: RFC 3339, in UTC.
  """

  row: int
  output_text: str | None
  rationale: str | None
  left_out: bool
  user: str
  time: str


@dataclasses.dataclass(frozen=True)
class ReviewedRow:
  """An annotated row with its edits.

  Attributes:
    number: its line in annotated.jsonl, from 1.
    annotated: the row as the annotation wrote it.
  """

  number: int
  annotated: Row
  edits: tuple[Edit, ...] = ()

  @property
  def version(self) -> int:
    """A number that changes with each edit."""
    return len(self.edits)

  @property
  def output_text(self) -> str | None:
    return self.edits[-1].output_text if self.edits else self.annotated.get("output_text")

  @property
  def rationale(self) -> str | None:
    return self.edits[-1].rationale if self.edits else self.annotated.get("rationale")

  @property
  def left_out(self) -> bool:
    return bool(self.edits) and self.edits[-1].left_out

  @property
  def changed(self) -> list[str]:
    """The texts that are not the annotation's."""
    names = ("output_text", "rationale")
    return [name for name in names if getattr(self, name) != self.annotated.get(name)]

  def to_train_on(self) -> Row:
    """Returns the row with its edited texts; its provenance says what was edited.

    An edited rationale stands for all rationales of the row, an edited label has no agreement.
    """
    if not self.changed:
      return self.annotated
    edit = self.edits[-1]
    provenance = {
      **self.annotated[PROVENANCE],
      "review": {"edited": self.changed, "user": edit.user, "time": edit.time},
    }
    row = {**self.annotated, PROVENANCE: provenance}
    for name in self.changed:
      row[name] = getattr(edit, name)
    if "output_text" in self.changed:
      provenance.pop("agreement", None)
    if "rationale" in self.changed:
      row.pop(RATIONALES, None)
    return {name: value for name, value in row.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class ApprovedReview:
  """An approved review: the file to train on, and its figures."""

  path: pathlib.Path
  figures: dict[str, Any]


class Review:
  """The review of one annotated file; any number of processes may read and edit it."""

  def __init__(self, annotated: PathLike):
    self._annotated = pathlib.Path(annotated)
    self._edits = self._annotated.with_name(EDITS)

  def rows(self) -> Iterator[ReviewedRow]:
    """Yields the rows in their order; raises UserError if a file is damaged."""
    edits: dict[int, list[Edit]] = {}
    for edit in self._read_edits():
      edits.setdefault(edit.row, []).append(edit)
    for number, row in read_annotated(self._annotated):
      yield ReviewedRow(number, row, tuple(edits.get(number, ())))

  def row(self, number: int) -> ReviewedRow:
    """Returns one row; raises UserError if there is none."""
    for row in self.rows():
      if row.number == number:
        return row
    raise UserError(f"row {number}: there is none; rows are counted from 1")

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps other processes from editing and approving."""
    with locked(self._edits):
      yield

  def edit(
    self, number: int, version: int, changes: Mapping[str, Any], user: str, time: str
  ) -> ReviewedRow:
    """Edits a row, within locked(); the edit is on the disk when this returns.

    Args:
      version: of the row that the editor saw.
      changes: by the names of Edit's fields; None for a text removes it.

    Raises:
      StaleEdit: somebody else edited the row since.
      UserError: there is no such row, or it could not be a row of training data.
    """
    row = self.row(number)
    if row.version != version:
      last = f", last by {row.edits[-1].user} at {row.edits[-1].time}" if row.edits else ""
      raise StaleEdit(
        f"row {number}: was edited since you read it{last}; read it again and repeat your edit"
      )
    current = Edit(number, row.output_text, row.rationale, row.left_out, user, time)
    edit = dataclasses.replace(current, **changes)
    if edit == current:
      return row
    edited = dataclasses.replace(row, edits=(*row.edits, edit))
    _check(edited)
    self._append(edit)
    return edited

  def approve(self, user: str, time: str) -> dict[str, Any]:
    """Writes the rows to train on, within locked(); returns the figures.

    Raises UserError if no label or no rationale is left to train on.
    """
    figures: dict[str, Any] = {}
    reviewed = self._annotated.with_name(REVIEWED)
    write_rows(reviewed, _counted(self.rows(), figures))
    stamp = {
      "annotated": _digest(self._annotated),
      "reviewed": _digest(reviewed),
      "user": user,
      "time": time,
      "figures": figures,
    }
    write_text(self._annotated.with_name(STAMP), json.dumps(stamp, indent=2) + "\n")
    return figures

  def _append(self, edit: Edit) -> None:
    line = json.dumps(dataclasses.asdict(edit), ensure_ascii=False).encode() + b"\n"
    with writing(self._edits), self._edits.open("r+b") as file:
      end = sum(len(each) for each in _whole_lines(file))
      # What a killed process left of a line.
      file.truncate(end)
      file.seek(end)
      file.write(line)
      file.flush()
      sync(file)

  def _read_edits(self) -> Iterator[Edit]:
    if not self._edits.exists():
      return
    with self._edits.open("rb") as file:
      for number, line in enumerate(_whole_lines(file), start=1):
        try:
          yield Edit(**json.loads(line))
        except (ValueError, TypeError):
          raise UserError(
            f"{self._edits}:{number}: is no edit; restore the file from a copy, or delete the line"
          ) from None


def approved_review(annotated: PathLike) -> ApprovedReview | None:
  """Returns the approved review of an annotated file as it is now; None if there is none."""
  path = pathlib.Path(annotated)
  reviewed = path.with_name(REVIEWED)
  try:
    stamp = json.loads(path.with_name(STAMP).read_text(encoding="utf-8"))
    is_of_these = (stamp["annotated"], stamp["reviewed"]) == (_digest(path), _digest(reviewed))
  except (OSError, ValueError, KeyError, TypeError):
    return None
  return ApprovedReview(reviewed, stamp["figures"]) if is_of_these else None


def _check(row: ReviewedRow) -> None:
  """Raises UserError unless the row could be a line of training data that trains something."""
  texts = {"output_text": row.output_text, "rationale": row.rationale}
  given = {name: text for name, text in texts.items() if text is not None}
  if not given and not row.left_out:
    raise UserError(f"row {row.number}: has neither label nor rationale; leave it out of training")
  problem = problem_of({"input_text": row.annotated["input_text"], **given})
  if problem is not None:
    raise UserError(f"row {row.number}: {problem.partition(';')[0]}; correct it, or leave it out")


def _counted(rows: Iterable[ReviewedRow], figures: dict[str, Any]) -> Iterator[Row]:
  """Yields the rows to train on, and fills in the figures of all."""
  figures.update(rows=0, edited=0, left_out=0)
  labelled = with_rationale = 0
  for reviewed in rows:
    figures["rows"] += 1
    if reviewed.left_out:
      figures["left_out"] += 1
      continue
    row = reviewed.to_train_on()
    figures["edited"] += bool(reviewed.changed)
    labelled += "output_text" in row
    with_rationale += "rationale" in row
    yield row
  for count, what in ((labelled, "label"), (with_rationale, "rationale")):
    if not count:
      raise UserError(f"the review leaves no {what} to train on; take a row with one back in")


def _whole_lines(file: Iterable[bytes]) -> Iterator[bytes]:
  return (line for line in file if line.endswith(b"\n"))


def _digest(path: os.PathLike[str]) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
