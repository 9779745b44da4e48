"""The journal: lookup, truncated and damaged files, locking, a full disk, fsync."""

import json
import os
import queue
import subprocess
import sys
import threading

import pytest

from dss_jax.annotation.journal import Journal, _Index, key_of
from dss_jax.errors import UserError
from dss_jax.teachers.base import TeacherRequest, TeacherResponse

RESPONSE = TeacherResponse("It is so.\nAnswer: \u2028yes\U0001f600", "stop", 5, 7, "served")


def _key(number):
  return f"{number * 2**70:032x}"


@pytest.fixture
def filled(tmp_path):
  """The path of a journal with ten answers."""
  journal = Journal(tmp_path / "j.jsonl")
  for number in range(10):
    journal.append(_key(number), TeacherResponse(f"answer {number}"))
  journal.close()
  return tmp_path / "j.jsonl"


def test_a_later_answer_replaces_an_earlier(tmp_path):
  journal = Journal(tmp_path / "j.jsonl")
  assert journal.get(_key(1)) is None
  entry = journal.append(_key(1), RESPONSE)
  assert journal.get(_key(1)) == entry
  journal.append(_key(1), TeacherResponse("later"))
  journal.close()
  journal = Journal(tmp_path / "j.jsonl")
  assert journal.get(_key(1)).response == TeacherResponse("later")
  assert len(journal) == 1
  journal.close()


def test_a_response_round_trips(tmp_path):
  journal = Journal(tmp_path / "j.jsonl")
  entry = journal.append(_key(3), RESPONSE)
  journal.close()
  journal = Journal(tmp_path / "j.jsonl")
  assert journal.get(_key(3)) == entry
  assert entry.response == RESPONSE
  assert entry.time.endswith("Z")
  journal.close()


def test_truncation_at_any_byte_keeps_complete_lines(filled):
  whole = filled.read_bytes()
  ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
  for size in [*range(0, len(whole), 37), len(whole)]:
    filled.write_bytes(whole[:size])
    kept = sum(end <= size for end in ends)
    journal = Journal(filled)
    assert len(journal) == kept
    assert [journal.get(_key(n)) is not None for n in range(10)] == [n < kept for n in range(10)]
    journal.append(_key(99), RESPONSE)
    journal.close()
    journal = Journal(filled)
    assert (len(journal), journal.unreadable_lines) == (kept + 1, 0)
    assert journal.get(_key(99)).response == RESPONSE
    journal.close()


@pytest.mark.parametrize(
  "line", [b"\n", b"{}\n", b'{"key": 3}\n', b"\xff\x00\n", b"[" * 9999 + b"\n", b'{"key": "x"}\n']
)
def test_a_damaged_line_is_counted_and_skipped(line, filled):
  lines = filled.read_bytes().splitlines(keepends=True)
  filled.write_bytes(b"".join([*lines[:5], line, *lines[5:]]))
  journal = Journal(filled)
  assert (len(journal), journal.unreadable_lines) == (10, 1)
  assert journal.get(_key(9)).response.text == "answer 9"
  journal.close()


def test_invalid_optional_fields_are_none(filled):
  with filled.open("a") as file:
    values = {"key": _key(50), "text": "t", "prompt_tokens": "5", "finish": 3}
    file.write(json.dumps(values) + "\n")
  journal = Journal(filled)
  assert journal.get(_key(50)).response == TeacherResponse("t")
  journal.close()


def test_keys_with_the_same_first_half_differ(tmp_path):
  journal = Journal(tmp_path / "j.jsonl")
  journal.append("a" * 32, RESPONSE)
  assert journal.get("a" * 16 + "b" * 16) is None
  journal.close()


def test_only_one_run_opens_a_journal(filled):
  journal = Journal(filled)
  with pytest.raises(UserError, match="another run is writing"):
    Journal(filled)
  code = f"from dss_jax.annotation.journal import Journal; Journal({os.fspath(filled)!r})"
  other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert "another run is writing" in other.stderr
  journal.close()
  Journal(filled).close()


def test_a_full_disk_is_reported_and_leaves_complete_lines(filled, monkeypatch):
  journal = Journal(filled)
  write = os.write

  def fails(file, data):
    write(file, bytes(data)[:10])
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "write", fails)
  with pytest.raises(UserError, match="No space left"):
    journal.append(_key(20), RESPONSE)
  monkeypatch.undo()
  journal.append(_key(21), RESPONSE)
  journal.close()
  journal = Journal(filled)
  assert (len(journal), journal.unreadable_lines) == (11, 0)
  journal.close()


def test_every_answer_is_synced(tmp_path, monkeypatch):
  synced = []
  fsync = os.fsync
  path = tmp_path / "j.jsonl"

  def record(file):
    synced.append(path.stat().st_size)
    fsync(file)

  monkeypatch.setattr(os, "fsync", record)
  journal = Journal(path)
  for number in range(50):
    journal.append(_key(number), RESPONSE)
  journal.close()
  assert synced[-1] == path.stat().st_size


def test_index_against_a_dictionary():
  index, expected = _Index(), {}
  for number in range(30_000):
    key = f"{number * 7919 % 20_011 * 2**68 + 5:032x}"
    index.add(key, number, number % 999)
    expected[key] = (number, number % 999)
  assert len(index) == len(expected)
  assert all(index.get(key) == place for key, place in expected.items())
  assert index.get("f" * 32) is None


def test_the_key_depends_on_all_that_is_sent():
  request = TeacherRequest(0, "x", [{"role": "user", "content": "x"}], None, ("Q",), 5, 0.0)
  key = key_of("t", "p", request)
  changes = [
    {"messages": None, "text": "x"},
    {"messages": [{"role": "user", "content": "y"}]},
    {"input_text": "y"},
    {"stop": ()},
    {"max_tokens": 6},
    {"temperature": 0.5},
    {"sample": 1},
  ]
  keys = {key_of("t", "p", TeacherRequest(**{**vars(request), **change})) for change in changes}
  keys |= {key_of("u", "p", request), key_of("t", "q", request)}
  assert len(keys) == 9
  assert key not in keys
  # The row number is not sent.
  assert key_of("t", "p", TeacherRequest(**{**vars(request), "index": 8})) == key


def test_all_answers_of_a_run_can_be_read_in_it(tmp_path):
  """Offsets follow the end of the file, also after a failed write."""
  journal = Journal(tmp_path / "j.jsonl")
  entries = [journal.append(_key(n), TeacherResponse("x" * n)) for n in range(1, 5)]
  assert [journal.get(_key(n)) for n in range(1, 5)] == entries
  journal.close()


def test_a_full_disk_truncates_nothing_of_the_same_run(tmp_path, monkeypatch):
  journal = Journal(tmp_path / "j.jsonl")
  kept = [journal.append(_key(n), TeacherResponse(f"answer {n}")) for n in (1, 2)]
  write = os.write

  def fails(file, data):
    write(file, bytes(data)[:10])
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "write", fails)
  with pytest.raises(UserError, match="No space left"):
    journal.append(_key(3), TeacherResponse("lost"))
  monkeypatch.undo()
  kept.append(journal.append(_key(4), TeacherResponse("later")))
  journal.close()
  journal = Journal(tmp_path / "j.jsonl")
  assert [journal.get(_key(n)) for n in (1, 2, 4)] == kept
  journal.close()


def test_answers_are_synced_before_the_journal_is_closed(tmp_path, monkeypatch):
  path, synced = tmp_path / "j.jsonl", queue.Queue()
  monkeypatch.setattr(os, "fsync", lambda file: synced.put(path.stat().st_size))
  journal = Journal(path)
  sync, ended, released = journal._sync, threading.Event(), threading.Event()

  def pause_at_the_end():
    sync()
    ended.set()
    released.wait(20)

  journal._sync = pause_at_the_end
  journal.append(_key(1), TeacherResponse("x"))
  assert ended.wait(20)
  assert synced.get(timeout=20) == path.stat().st_size
  # The second answer arrives when the first sync has ended but still occupies the thread.
  journal.append(_key(2), TeacherResponse("x"))
  released.set()
  assert synced.get(timeout=20) == path.stat().st_size
  journal.close()


def test_a_failed_sync_is_reported(tmp_path, monkeypatch):
  failed = threading.Event()

  def fails(file):
    failed.set()
    raise OSError(5, "Input/output error")

  monkeypatch.setattr(os, "fsync", fails)
  journal = Journal(tmp_path / "j.jsonl")
  journal.append(_key(1), TeacherResponse("x"))
  assert failed.wait(20)
  # Waits until the failed sync has ended, then lets the others succeed.
  journal._thread.submit(int).result(20)
  monkeypatch.undo()
  with pytest.raises(UserError, match="Input/output error"):
    journal.append(_key(2), TeacherResponse("x"))
  with pytest.raises(UserError, match="Input/output error"):
    journal.close()
