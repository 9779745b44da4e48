"""Files and folders are read, listed and joined, on this machine and under URLs."""

import builtins
import gzip
import pathlib

import fsspec
import pytest

from dss_jax.errors import UserError
from dss_jax.storage import files
from dss_jax.storage.files import join, list_folder, open_text, reason


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
  """A folder with a.txt and below/b.txt, as a path and as a URL."""
  name = str(tmp_path / "files") if request.param == "local" else f"memory:/{tmp_path}/files"
  for path in ("a.txt", "below/b.txt"):
    with fsspec.open(f"{name}/{path}", "wb", auto_mkdir=True) as file:
      file.write(path.encode())
  return name


def test_only_a_scheme_makes_a_url():
  assert files.is_url("gs://bucket/x")
  assert files.is_url("memory://x")
  assert not files.is_url("gs:/bucket/x")
  assert not files.is_url(pathlib.Path("x"))


def test_names_are_joined_below_a_path_or_a_url(tmp_path):
  assert join(tmp_path, "a", "b") == str(tmp_path / "a" / "b")
  assert join("gs://bucket", "a", "b") == "gs://bucket/a/b"
  assert join("gs://bucket/x/", "a") == "gs://bucket/x/a"
  assert join("memory://", "a") == "memory://a"


def test_a_folder_is_listed_and_its_files_are_read(folder):
  assert list_folder(folder) == list_folder(f"{folder}/") == ["a.txt", "below"]
  assert list_folder(join(folder, "below")) == ["b.txt"]
  assert files.read_text(join(folder, "a.txt")) == "a.txt"
  assert files.read_bytes(join(folder, "below", "b.txt")) == b"below/b.txt"


def test_a_file_is_no_folder_and_a_folder_no_file(folder):
  answers = {
    name: (files.exists(path), files.is_file(path), files.is_dir(path))
    for name in ("a.txt", "below", "absent")
    for path in [join(folder, name)]
  }
  assert answers == {
    "a.txt": (True, True, False),
    "below": (True, False, True),
    "absent": (False, False, False),
  }


def test_a_bucket_lists_its_own_marker_and_it_is_left_out(monkeypatch, tmp_path):
  folder = f"memory:/{tmp_path}/bucket"
  with fsspec.open(f"{folder}/a", "wb") as file:
    file.write(b"a")
  memory = fsspec.implementations.memory.MemoryFileSystem
  listed = memory.ls
  monkeypatch.setattr(
    memory, "ls", lambda self, path, detail: [f"{path}/", *listed(self, path, detail=detail)]
  )
  assert list_folder(folder) == ["a"]


def test_a_folder_that_is_not_there_cannot_be_listed(folder):
  for name in ("absent", "a.txt"):
    path = join(folder, name)
    with pytest.raises(UserError, match="cannot be listed") as caught:
      list_folder(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_url_without_a_driver_is_one_sentence():
  for question in (files.exists, files.is_file, files.is_dir, list_folder, files.read_bytes):
    with pytest.raises(UserError, match=r"s3://bucket/x: no driver .*`pip install s3fs`") as caught:
      question("s3://bucket/x")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_opened_is_one_sentence(tmp_path, monkeypatch):
  (tmp_path / "plain.gz").write_bytes(b"not gzip")
  cases = {
    str(tmp_path / "absent"): "no such file",
    str(tmp_path): "a directory",
    "s3://bucket/x.jsonl": "pip install s3fs",
    "nosuch://x": "cannot be opened",
    "memory://nothing/here": "no such file",
    "a\0b": "cannot be opened",
  }
  for name, words in cases.items():
    with pytest.raises(UserError, match=words) as caught:
      open_text(name)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)
  with pytest.raises(UserError, match="gzip stream"):
    open_text(tmp_path / "plain.gz").read()

  def forbidden(*args, **kwargs):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(builtins, "open", forbidden)
  with pytest.raises(UserError, match="permission denied"):
    open_text(tmp_path / "plain.gz")


def test_a_failure_of_a_driver_while_reading_names_the_file(monkeypatch):
  class Broken(fsspec.implementations.memory.MemoryFile):
    def read(self, *args):
      raise RuntimeError("connection lost")

    read1 = read

  monkeypatch.setattr(
    fsspec.implementations.memory.MemoryFileSystem, "_open", lambda *args, **kwargs: Broken()
  )
  with pytest.raises(UserError, match=r"^memory://x: reading failed \(connection lost\)"):
    files.read_bytes("memory://x")


def test_text_that_is_not_utf8_is_one_sentence(tmp_path):
  path = tmp_path / "x.txt"
  path.write_bytes(b"fine\n\xff\n")
  for read in (lambda file: file.read(), list, lambda file: [file.readline() for _ in "ab"]):
    with open_text(path) as file, pytest.raises(UserError, match="not UTF-8"):
      read(file)
  path.write_bytes(b"\xef\xbb\xbfone\r\ntwo")
  assert files.read_text(path) == "one\ntwo"
  assert files.read_bytes(path) == b"\xef\xbb\xbfone\r\ntwo"


def test_gzip_is_by_suffix(tmp_path):
  path = tmp_path / "x.gz"
  path.write_bytes(gzip.compress(b"text"))
  assert files.read_text(path) == "text"


def test_the_reason_of_an_error_is_one_short_line():
  assert reason(OSError(28, "No space left on device", "x")) == "No space left on device"
  assert reason(ValueError("two\n  lines.")) == "two lines"
  assert reason(KeyError()) == "KeyError"
  assert reason(TimeoutError()) == "no answer in time"
  assert reason(TimeoutError("no answer within 5 seconds")) == "no answer within 5 seconds"
  assert len(reason(ValueError("x" * 1000))) == 200
  # Brackets of other messages stay.
  assert reason(ValueError("shape [3, 4] is wrong")) == "shape [3, 4] is wrong"


def test_the_reason_leaves_out_the_details_of_tensorstore(tmp_path):
  import tensorstore as ts

  spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{tmp_path}/"}}
  with pytest.raises(ValueError, match="tensorstore_spec") as caught:
    ts.open(spec, open=True).result()
  assert reason(caught.value).endswith('.zarray" does not exist')


def test_gzip_is_known_by_its_first_bytes(folder, capsys):
  for name in ("plain", "named.gz", "empty.gz"):
    path = join(folder, name)
    text = b"" if name == "empty.gz" else b"a\n" * 100_000
    with fsspec.open(path, "wb") as file:
      file.write(gzip.compress(text))
    assert files.read_bytes(path) == text
    assert files.read_text(path) == text.decode()
  said = capsys.readouterr().err.splitlines()
  assert said == [
    f"{join(folder, 'plain')}: compressed with gzip, without .gz in its name; it is decompressed"
  ]


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"\x28\xb5\x2f\xfd....", "compressed with zstd; decompress it first"),
    (b"BZh91AY", "compressed with bzip2"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PAR1....", "a Parquet file; write it as JSON lines"),
    (b"\xff\xff\xff\xff\x10", "an Arrow stream"),
    (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS; fetch"),
    (b"a.txt".ljust(257, b"\0") + b"ustar", "a tar archive"),
    ("{}\n".encode("utf-16"), "text in UTF-16; save the file as UTF-8"),
    ("{}\n".encode("utf-16-be"), "text in UTF-16"),
    ("{}\n".encode("utf-16-le"), "text in UTF-16"),
    ("{}\n".encode("utf-32"), "text in UTF-32"),
    ("{}\n".encode("utf-32-le"), "text in UTF-32"),
    ("{}\n".encode("utf-32-be"), "text in UTF-32"),
  ],
)
def test_another_format_is_named(tmp_path, content, words):
  for name, written in (("x", content), ("x.gz", gzip.compress(content))):
    (tmp_path / name).write_bytes(written)
    for read in (files.read_text, files.read_bytes):
      with pytest.raises(UserError) as caught:
        read(tmp_path / name)
      assert str(caught.value).startswith(f"{tmp_path / name}: {words}")


def test_short_and_odd_text_is_no_other_format(tmp_path):
  for content in (b"", b"a", b"\xef\xbb\xbf{}", b"\x00", b"\x00\x00\x00\x00", b"P"):
    (tmp_path / "x").write_bytes(content)
    assert files.read_bytes(tmp_path / "x") == content
