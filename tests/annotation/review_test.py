"""The review of annotated rows: edits beside the teacher's answers, and what is trained on."""

import fcntl
import json
import multiprocessing

import pytest

from dss_jax.annotation.report import report_on
from dss_jax.annotation.review import EDITS, REVIEWED, STAMP, Review, StaleEdit, approved_review
from dss_jax.data.agreement import agreement_of
from dss_jax.data.records import read_rows, write_rows
from dss_jax.errors import UserError

TIME = "2026-01-01T00:00:00Z"


def annotated_row(number, **changes):
  provenance = {"status": "answered", "label": "yes", "agreement": 0.6, "concerns": []}
  row = {
    "input_text": f"Is {number} a number?",
    "output_text": "yes",
    "rationale": f"{number} counts: yes.",
    "provenance": {**provenance, **changes.pop("provenance", {})},
    **changes,
  }
  return {name: value for name, value in row.items() if value is not None}


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "annotated.jsonl"
  further = {"rationales": ["1 counts: yes.", "One is one: yes."]}
  write_rows(path, [annotated_row(1, **further), annotated_row(2), annotated_row(3)])
  return path


@pytest.fixture
def review(path):
  return Review(path)


@pytest.fixture
def edit(review):
  """Edits a row; the keywords are its changes."""

  def edit(number, version=0, user="ann", **changes):
    with review.locked():
      return review.edit(number, version, changes, user, TIME)

  return edit


def approve(review):
  with review.locked():
    return review.approve("bob", TIME)


def test_edits_are_beside_what_the_teacher_wrote(review, edit, path):
  before = path.read_bytes()
  edited = edit(2, rationale="Two is one.")
  assert (edited.version, edited.rationale, edited.output_text) == (1, "Two is one.", "yes")
  assert edit(2, 1, output_text="no", user="bob").changed == ["output_text", "rationale"]
  assert edit(3, left_out=True).left_out
  found = {row.number: row for row in Review(path).rows()}
  assert (found[2].output_text, found[2].rationale) == ("no", "Two is one.")
  assert [(one.user, one.time) for one in found[2].edits] == [("ann", TIME), ("bob", TIME)]
  assert (found[1].version, found[1].changed, found[1].left_out) == (0, [], False)
  assert path.read_bytes() == before
  assert len((path.parent / EDITS).read_text().splitlines()) == 3


def test_an_edit_that_changes_nothing_is_none(edit, path):
  # Whoever sent it before may send it again.
  assert edit(2, output_text="yes").version == 0
  assert not (path.parent / EDITS).read_text()


def test_an_edit_of_an_old_version_is_refused(edit):
  edit(2, rationale="First.")
  with pytest.raises(StaleEdit, match=r"row 2: was edited since .* by ann at 2026-"):
    edit(2, rationale="Second.", user="bob")
  assert edit(2, 1, rationale="Second.").version == 2


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"rationale": ""}, 'row 2: "rationale" is empty'),
    ({"rationale": "\u200b"}, "only invisible characters"),
    ({"output_text": 3}, '"output_text" is a number, not a string'),
    ({"rationale": "\ud83d"}, "half of a character"),
    ({"rationale": "x" * 11_000_000}, "more than 10,485,760 bytes"),
    ({"rationale": None, "output_text": None}, "has neither label nor rationale"),
  ],
)
def test_an_edited_row_passes_the_checks_of_data(changes, says, edit, path):
  with pytest.raises(UserError, match=says):
    edit(2, **changes)
  assert not (path.parent / EDITS).read_text()


def test_rows_that_are_not_there(edit):
  with pytest.raises(UserError, match="row 4: there is none"):
    edit(4, rationale="Four.")


def test_approval_writes_what_is_trained_on(review, edit, path):
  edit(1, rationale="One.")
  edit(2, output_text="no")
  edit(2, 1, output_text="yes")
  edit(3, left_out=True)
  assert approved_review(path) is None
  figures = {"rows": 3, "edited": 1, "left_out": 1}
  assert approve(review) == figures
  approved = approved_review(path)
  assert (approved.path, approved.figures) == (path.parent / REVIEWED, figures)
  first, second = read_rows(approved.path)
  # The edited rationale stands for all of the row's.
  assert (first["rationale"], "rationales" in first) == ("One.", False)
  assert first["provenance"]["review"] == {"edited": ["rationale"], "user": "ann", "time": TIME}
  assert second == annotated_row(2)
  assert report_on(approved.path)["rows"] == 2
  stamp = json.loads((path.parent / STAMP).read_text())
  assert (stamp["user"], stamp["time"]) == ("bob", TIME)


def test_an_edited_label_is_no_share_of_the_teachers_answers(review, edit, path):
  edit(1, output_text="no")
  edit(2, rationale=None)
  approve(review)
  rows = list(read_rows(path.parent / REVIEWED))
  assert [agreement_of(row) for row in rows] == [None, 0.6, 0.6]
  assert "rationale" not in rows[1]


def test_an_approval_is_of_its_rows(review, edit, path):
  approve(review)
  assert approved_review(path) is not None
  write_rows(path, [annotated_row(7)])
  assert approved_review(path) is None


def test_nothing_left_to_train_on(review, edit, path):
  for number in (1, 2, 3):
    edit(number, left_out=True)
  with pytest.raises(UserError, match="leaves no label to train on"):
    approve(review)
  assert approved_review(path) is None
  assert not (path.parent / REVIEWED).exists()


def test_an_edit_that_a_kill_cut_off_is_none(edit, path, review):
  edit(1, rationale="One.")
  edits = path.parent / EDITS
  whole = edits.read_bytes()
  edits.write_bytes(whole + whole[:25])
  assert [row.version for row in review.rows()] == [1, 0, 0]
  edit(2, rationale="Two.")
  assert [row.version for row in review.rows()] == [1, 1, 0]


def test_a_damaged_file_of_edits_is_named(edit, path, review):
  (path.parent / EDITS).write_text('{"row": 1}\n')
  with pytest.raises(UserError, match=r"annotated.edits.jsonl:1: is no edit"):
    list(review.rows())


def test_an_edit_keeps_other_processes_out(review, path):
  with review.locked(), (path.parent / EDITS).open("ab") as other, pytest.raises(BlockingIOError):
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_many(path, user, count):
  """Edits row 1 so often, and reads it again whenever another process was faster."""
  review = Review(path)
  for number in range(count):
    while True:
      version = review.row(1).version
      with review.locked():
        try:
          review.edit(1, version, {"rationale": f"{user} {number}"}, user, TIME)
          break
        except StaleEdit:
          continue


def test_two_editors_at_once_lose_no_edit(path, review):
  context = multiprocessing.get_context("spawn")
  processes = [context.Process(target=write_many, args=(path, user, 20)) for user in ("a", "b")]
  for process in processes:
    process.start()
  for process in processes:
    process.join()
    assert process.exitcode == 0
  edits = review.row(1).edits
  assert len(edits) == 40
  for user in ("a", "b"):
    written = [edit.rationale for edit in edits if edit.user == user]
    assert written == [f"{user} {number}" for number in range(20)]
