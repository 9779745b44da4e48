"""The journal of a batch prediction: a kill at any byte loses at most the last window."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dss_jax.jobs.students.batch_journal import BatchJournal
from dss_jax.storage.sealed import DataKey, SealedError

KEY = DataKey(bytes(range(32)), "job-1", "projects/p/k", "d3JhcHBlZA==")
_lines = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=3)
_windows = st.lists(st.tuples(st.text("abc", max_size=4), _lines, _lines), max_size=5)


def content(journal):
  return [b"".join(journal.lines(kind)).decode() for kind in (0, 1)]


@settings(max_examples=60, deadline=None)
@given(windows=_windows, share=st.floats(0, 1), key=st.sampled_from([None, KEY]))
def test_whole_windows_are_kept(tmp_path_factory, windows, share, key):
  path = tmp_path_factory.mktemp("journal") / "1.jsonl"
  journal = BatchJournal(path, key)
  sizes = [journal._path.stat().st_size]
  for window in windows:
    journal.add(*window)
    sizes.append(journal._path.stat().st_size)
  journal.close()
  cut = sizes[0] + int(share * (sizes[-1] - sizes[0]))
  journal._path.write_bytes(journal._path.read_bytes()[:cut])
  kept = windows[: sum(size <= cut for size in sizes) - 1]
  for _ in range(2):
    again = BatchJournal(path, key)
    assert again.resume(iter(digest for digest, _, _ in windows))
    assert again.counts == [sum(len(each[kind]) for each in kept) for kind in (1, 2)]
    expected = ["".join(line for each in kept for line in each[kind]) for kind in (1, 2)]
    assert content(again) == expected
    again.close()


@pytest.mark.parametrize("key", [None, KEY])
def test_other_rows_are_asked_from_the_first(tmp_path, key):
  journal = BatchJournal(tmp_path / "1.jsonl", key)
  journal.add("one", ["1\n"], [])
  journal.add("two", ["2\n"], ["e\n"])
  assert not journal.resume(iter(["one", "other"]))
  assert (journal.counts, content(journal)) == ([0, 0], ["", ""])
  journal.add("one", ["3\n"], [])
  assert journal.resume(iter(["one"]))
  assert not journal.resume(iter([]))
  journal.remove()
  assert list(tmp_path.iterdir()) == []


def test_an_encrypted_one_has_no_answer_in_plain(tmp_path):
  journal = BatchJournal(tmp_path / "1.jsonl", KEY)
  journal.add("one", ["secret\n"], ["secret\n"])
  journal.close()
  (path,) = tmp_path.iterdir()
  damaged = path.read_bytes()
  assert b"secret" not in damaged
  path.write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))
  with pytest.raises(SealedError, match="was changed or cut off"):
    BatchJournal(tmp_path / "1.jsonl", KEY)
