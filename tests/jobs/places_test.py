"""URIs of requests lead below the operator's buckets and folders, and nowhere else."""

import pytest

from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.places import resolve
from dss_jax.jobs.settings import Settings


@pytest.fixture
def settings(tmp_path):
  for name in ("bucket", "open", "secret"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "rows.jsonl").write_text("{}\n")
  (tmp_path / "bucket" / "out").symlink_to(tmp_path / "secret")
  (tmp_path / "bucket" / "in").symlink_to(tmp_path / "bucket" / "rows.jsonl")
  return Settings(
    buckets={
      "my-bucket": str(tmp_path / "bucket"),
      "real": "gs://real-one/below",
      "theirs": {"path": str(tmp_path / "bucket"), "projects": ["q"]},
    },
    folders=(str(tmp_path / "open"),),
  )


def test_what_is_open(settings, tmp_path):
  assert resolve(settings, "gs://my-bucket/rows.jsonl", "x", "p") == str(
    tmp_path / "bucket/rows.jsonl"
  )
  assert resolve(settings, "gs://my-bucket//a//b", "x", "p") == str(tmp_path / "bucket/a/b")
  assert resolve(settings, "gs://my-bucket", "x", "p") == str(tmp_path / "bucket")
  assert resolve(settings, "gs://my-bucket/in", "x", "p") == str(tmp_path / "bucket/rows.jsonl")
  assert resolve(settings, f"{tmp_path}/open/new", "x", "p") == f"{tmp_path}/open/new"
  assert resolve(settings, "gs://theirs/a", "x", "q") == str(tmp_path / "bucket/a")
  assert resolve(settings, "gs://real/a.jsonl", "x", "p") == "gs://real-one/below/a.jsonl"


@pytest.mark.parametrize(
  ("uri", "kind"),
  [
    ("gs://my-bucket/../secret/rows.jsonl", "INVALID_ARGUMENT"),
    ("gs://my-bucket/a/../../secret/rows.jsonl", "INVALID_ARGUMENT"),
    ("gs://real/../other", "INVALID_ARGUMENT"),
    ("gs://my-bucket/out/rows.jsonl", "PERMISSION_DENIED"),
    ("gs://my-bucket/out", "PERMISSION_DENIED"),
    ("gs://other/rows.jsonl", "PERMISSION_DENIED"),
    ("gs://theirs/rows.jsonl", "PERMISSION_DENIED"),
    ("gs:///rows.jsonl", "PERMISSION_DENIED"),
    ("gs://../rows.jsonl", "PERMISSION_DENIED"),
    ("TMP/secret/rows.jsonl", "PERMISSION_DENIED"),
    ("TMP/open/../secret/rows.jsonl", "INVALID_ARGUMENT"),
    ("TMP/opener/rows.jsonl", "PERMISSION_DENIED"),
    ("/etc/passwd", "PERMISSION_DENIED"),
    ("rows.jsonl", "INVALID_ARGUMENT"),
    ("-", "INVALID_ARGUMENT"),
    ("~/rows.jsonl", "INVALID_ARGUMENT"),
    ("file:///etc/passwd", "INVALID_ARGUMENT"),
    ("http://127.0.0.1/rows", "INVALID_ARGUMENT"),
    ("memory://a", "INVALID_ARGUMENT"),
    ("gs://my-bucket/a\0b", "INVALID_ARGUMENT"),
    ("gs://my-bucket/a\nb", "INVALID_ARGUMENT"),
    ("gs://my-bucket/" + "a" * 2000, "INVALID_ARGUMENT"),
    ("", "INVALID_ARGUMENT"),
  ],
)
def test_what_is_not(settings, tmp_path, uri, kind):
  with pytest.raises(ApiError, match=r"^field: ") as error:
    resolve(settings, uri.replace("TMP", str(tmp_path)), "field", "p")
  assert error.value.kind == kind
  assert str(tmp_path / "bucket") not in str(error.value)
