"""Sealed files: whatever is done to one, it is read as it was written or not at all."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dss_jax.storage import sealed
from dss_jax.storage.sealed import (
  CHUNK_BYTES,
  DataKey,
  SealedError,
  SealedLog,
  SealedWriter,
  open_sealed,
  read_header,
  sealing,
)
from dss_jax.storage.sealed_folders import files_below, open_folder, open_to, seal_files

KEY = DataKey(bytes(range(32)), "job-1", "projects/p/k", "d3JhcHBlZA==")
OTHER = DataKey(bytes(32), "job-1", "projects/p/k", "d3JhcHBlZA==")


def unlock(header):
  return KEY


def seal(path, content, name="rows.jsonl", key=KEY):
  with sealing(path, key, name) as file:
    file.write(content)
  return path


def read(path, name="rows.jsonl", owner="job-1", unlock=unlock):
  with open_sealed(path, unlock, owner=owner, name=name) as file:
    return file.read()


@pytest.mark.parametrize(
  "size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 5]
)
def test_what_is_sealed_is_read_again(tmp_path, size):
  content = bytes(range(256)) * (size // 256 + 1)
  path = seal(tmp_path / "a.sealed", content[:size])
  assert read(path) == content[:size]
  assert content[:64] not in path.read_bytes() or size < 64


def test_the_header_needs_no_key(tmp_path):
  header = read_header(seal(tmp_path / "a.sealed", b"secret"))
  assert header == KEY.header("rows.jsonl", "file")
  assert KEY.secret.hex() not in repr(KEY)


def test_two_of_the_same_content_differ(tmp_path):
  one, other = (seal(tmp_path / name, b"x" * 100).read_bytes() for name in ("a", "b"))
  assert one[-116:] != other[-116:]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"name": "other"}, "is rows.jsonl of job-1, put in the place of another file"),
    ({"owner": "job-2"}, "is rows.jsonl of job-1, put in the place of another file"),
    ({"unlock": lambda header: OTHER}, "was changed or cut off after it was encrypted"),
  ],
)
def test_another_file_or_key_is_refused(tmp_path, changes, message):
  path = seal(tmp_path / "a.sealed", b"secret")
  with pytest.raises(SealedError, match=message) as error:
    read(path, **changes)
  assert "\n" not in str(error.value)


def test_a_file_that_is_none_is_refused(tmp_path):
  for content in (b"", b"{}\n", sealed.MAGIC, sealed.MAGIC + b"\0\0\0\2{}" + b"x" * 90):
    path = tmp_path / "a.sealed"
    path.write_bytes(content)
    with pytest.raises(SealedError):
      read(path)


def test_a_newer_format_is_named(tmp_path):
  head = json.dumps({**vars(KEY.header("a", "file")), "format": 2}).encode()
  path = tmp_path / "a.sealed"
  path.write_bytes(sealed.MAGIC + len(head).to_bytes(4, "big") + head)
  with pytest.raises(SealedError, match="is of format 2, and this program knows 1"):
    read_header(path)


_contents = st.lists(st.binary(max_size=40), min_size=1, max_size=8)


def sealed_bytes(parts, kind="file", name="a"):
  """A file whose parts are chunks of their own, and what is read of it."""
  file = io.BytesIO()
  writer = SealedWriter(file, KEY, name, kind)
  for part in parts:
    writer.write(part)
    writer.flush_chunk()
  if kind == "file":
    writer.end()
  return file.getvalue(), b"".join(parts)


def read_or_none(path, content, name="a"):
  path.write_bytes(content)
  try:
    return read(path, name)
  except SealedError:
    return None


@settings(max_examples=150, deadline=None)
@given(parts=_contents, data=st.data())
def test_a_changed_file_is_refused(tmp_path_factory, parts, data):
  path = tmp_path_factory.mktemp("sealed") / "a.sealed"
  whole, plain = sealed_bytes(parts)
  assert read_or_none(path, whole) == plain
  place = data.draw(st.integers(0, len(whole) - 1))
  flipped = bytearray(whole)
  flipped[place] ^= 1 << data.draw(st.integers(0, 7))
  assert read_or_none(path, bytes(flipped)) is None
  assert read_or_none(path, whole[:place]) is None
  assert read_or_none(path, whole + data.draw(st.binary(min_size=1, max_size=40))) is None


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.binary(min_size=1, max_size=9), min_size=2, max_size=6), data=st.data())
def test_moved_chunks_are_refused(tmp_path_factory, parts, data):
  path = tmp_path_factory.mktemp("sealed") / "a.sealed"
  whole, plain = sealed_bytes(parts)
  other, _ = sealed_bytes(parts)
  head, chunks = split(whole)
  _, others = split(other)
  order = data.draw(st.permutations(range(len(chunks))))
  moved = read_or_none(path, head + b"".join(chunks[each] for each in order))
  assert moved == (plain if order == sorted(order) else None)
  left_out = data.draw(st.integers(0, len(chunks) - 1))
  rest = chunks[:left_out] + chunks[left_out + 1 :]
  assert read_or_none(path, head + b"".join(rest)) is None
  # Of another file with the same key, name and content.
  mixed = [*chunks[:left_out], others[left_out], *chunks[left_out + 1 :]]
  assert read_or_none(path, head + b"".join(mixed)) is None


def test_the_length_of_the_last_chunk_counts(tmp_path):
  """One that is too long must not be taken for what is left of the file."""
  whole, plain = sealed_bytes([b"one", b"two"])
  head, chunks = split(whole)
  longer = (int.from_bytes(chunks[-1][:4], "big") + 2**16).to_bytes(4, "big") + chunks[-1][4:]
  path = tmp_path / "a.sealed"
  assert read_or_none(path, head + b"".join(chunks)) == plain
  assert read_or_none(path, head + b"".join([*chunks[:-1], longer])) is None


def split(whole):
  """The bytes before the chunks, and the chunks."""
  length = int.from_bytes(whole[len(sealed.MAGIC) : len(sealed.MAGIC) + 4], "big")
  place = len(sealed.MAGIC) + 4 + length + 32
  head, chunks = whole[:place], []
  while place < len(whole):
    size = 4 + int.from_bytes(whole[place : place + 4], "big")
    chunks.append(whole[place : place + size])
    place += size
  return head, chunks


@settings(max_examples=100, deadline=None)
@given(parts=_contents, data=st.data())
def test_a_log_loses_its_end_alone(tmp_path_factory, parts, data):
  """A kill leaves a part of a chunk; what is before it is read, and nothing else."""
  path = tmp_path_factory.mktemp("sealed") / "a.sealed"
  whole, plain = sealed_bytes(parts, "log")
  assert read_or_none(path, whole) == plain
  head, chunks = split(whole)
  cut = data.draw(st.integers(len(head), len(whole)))
  found = read_or_none(path, whole[:cut])
  complete = [part for part in parts if part]
  ends = [len(head) + sum(map(len, chunks[:count])) for count in range(len(chunks) + 1)]
  assert found == b"".join(complete[: sum(end <= cut for end in ends) - 1])
  if chunks:
    flipped = bytearray(whole)
    # Not the length: a chunk that is said to be longer is one that was cut off.
    flipped[data.draw(st.integers(len(whole) - 16, len(whole) - 1))] ^= 1
    assert read_or_none(path, bytes(flipped)) is None


def test_a_log_is_appended_to(tmp_path):
  path = tmp_path / "a.sealed"
  log = SealedLog(path, KEY, "a", [b"first\n"])
  assert read(path, "a") == b"first\n"
  for _ in range(3):
    log.append([b"more\n", b"x" * CHUNK_BYTES])
  log.close()
  assert read(path, "a") == b"first\n" + 3 * (b"more\n" + b"x" * CHUNK_BYTES)


def test_a_log_is_no_whole_file(tmp_path):
  """The kind is authenticated: else a file that was cut off could pass for a log."""
  whole, _ = sealed_bytes([b"one", b"two"])
  path = tmp_path / "a.sealed"
  assert read_or_none(path, whole.replace(b'"kind": "file"', b'"kind": "log" ')) is None


def test_folders(tmp_path):
  folder = tmp_path / "folder"
  (folder / "inner").mkdir(parents=True)
  (folder / "inner" / "weights").write_bytes(b"w" * 200_000)
  (folder / "empty").write_bytes(b"")
  path = tmp_path / "a.sealed"
  seal_files(path, KEY, "models/a", files_below(folder))
  open_folder(path, unlock, tmp_path / "again", name="models/a")
  assert {inner: file.read_bytes() for file, inner in files_below(tmp_path / "again")} == {
    "empty": b"", "inner/weights": b"w" * 200_000,
  }  # fmt: skip
  content = path.read_bytes()
  for damaged in (content[:-9], content[:-20000], content[:40_000] + b"x" + content[40_001:]):
    path.write_bytes(damaged)
    with pytest.raises(SealedError):
      open_folder(path, unlock, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_of_a_damaged_file_nothing_is_written(tmp_path):
  path = seal(tmp_path / "a.sealed", b"x" * 3 * CHUNK_BYTES)
  open_to(path, unlock, str(tmp_path / "plain"))
  assert (tmp_path / "plain").read_bytes() == b"x" * 3 * CHUNK_BYTES
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(SealedError):
    open_to(path, unlock, str(tmp_path / "other"))
  assert not (tmp_path / "other").exists()
