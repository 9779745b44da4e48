"""Uploads: whole or not at all, under names of the server's own, kept while a job reads them."""

import datetime
import io
import pathlib

import pytest

from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.uploads import Uploads, upload_path
from dss_jax.serving.errors import Refused

ROWS = b'{"input_text": "x"}\n'


@pytest.fixture
def uploads(tmp_path):
  return Uploads(str(tmp_path / "uploads"), 1000)


def add(uploads, content=ROWS, name="rows.jsonl", project="p"):
  return uploads.add(project, name, io.BytesIO(content), "somebody")


def files(uploads, tmp_path):
  return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())


def test_an_upload_is_stored_under_its_id(uploads, tmp_path):
  upload = add(uploads)
  assert uploads.list("p") == [upload]
  assert uploads.list("other") == []
  assert uploads.get("p", upload.id) == upload
  path = uploads.path("p", upload)
  assert pathlib.Path(path).read_bytes() == ROWS
  assert path == upload_path(str(tmp_path / "uploads"), "p", upload.uri)
  assert (upload.name, upload.size_bytes, upload.user) == ("rows.jsonl", len(ROWS), "somebody")


@pytest.mark.parametrize(
  ("name", "shown"),
  [
    ("../../rows.jsonl", "rows.jsonl"),
    ("C:\\data\\rows.jsonl", "rows.jsonl"),
    ("/", "unnamed"),
    ("a\x1b[2Jb", "a\\x1b[2Jb"),
    ("y" * 500, "y" * 120),
  ],
)
def test_a_name_is_only_shown(uploads, name, shown):
  assert add(uploads, name=name).name == shown


@pytest.mark.parametrize("content", [b"", b"\x1f\x8bzipped", b"x" * 1001])
def test_what_is_refused_leaves_nothing(uploads, tmp_path, content):
  with pytest.raises(Refused):
    add(uploads, content)
  assert files(uploads, tmp_path) == []


def test_the_most_bytes_are_taken(uploads):
  assert add(uploads, b"x" * 1000).size_bytes == 1000


@pytest.mark.parametrize("own", ["..", "../p", "0" * 24, "", "ABC", "0" * 23 + "/"])
def test_ids_that_are_none(uploads, own):
  add(uploads)
  with pytest.raises(ApiError, match="does not exist"):
    uploads.get("p", own)
  assert upload_path("folder", "p", f"upload://{own}") is None or own == "0" * 24


def test_deleting(uploads, tmp_path):
  upload = add(uploads)
  with pytest.raises(ApiError, match="a job reads it"):
    uploads.delete("p", upload.id, {uploads.path("p", upload)})
  uploads.delete("p", upload.id, set())
  assert files(uploads, tmp_path) == []


def test_old_uploads_are_deleted_unless_a_job_reads_them(uploads):
  used, unused = add(uploads), add(uploads, project="q")
  now = datetime.datetime.now(datetime.UTC)
  hour = datetime.timedelta(hours=1)
  uploads.tidy(now - hour, set())
  assert uploads.list("q") == [unused]
  uploads.tidy(now + hour, {uploads.path("p", used)})
  assert (uploads.list("p"), uploads.list("q")) == ([used], [])
