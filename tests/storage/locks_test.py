"""Locks: one holder, a sentence for the others, and file systems without locks."""

import errno
import fcntl
import threading

import pytest

from dss_jax.errors import UserError
from dss_jax.storage.locks import locked, try_lock


def test_one_holder_at_a_time(tmp_path):
  path = tmp_path / "lock"
  with locked(path, "it is in use"):
    with pytest.raises(UserError, match=r"^it is in use$"), locked(path, "it is in use"):
      raise AssertionError
    with path.open() as file:
      assert not try_lock(file)
  with path.open() as file:
    assert try_lock(file)


def test_what_the_file_holds_stays(tmp_path):
  """Also where another process holds the lock, whose file it is."""
  path = tmp_path / "lock"
  path.write_text("mine")
  with locked(path, ""):
    assert path.read_text() == "mine"


def test_without_a_refusal_it_waits(tmp_path):
  order = []

  def second():
    with locked(tmp_path / "lock"):
      order.append("second")

  with locked(tmp_path / "lock"):
    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.05)
    order.append("first")
  thread.join()
  assert order == ["first", "second"]


@pytest.mark.parametrize("refusal", [None, "it is in use"])
def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch, refusal):
  def flock(file, operation):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", flock)
  with (
    pytest.raises(UserError, match=r"cannot be written .*[Nn]o locks"),
    locked(tmp_path / "lock", refusal),
  ):
    raise AssertionError


def test_a_folder_that_is_missing(tmp_path):
  with pytest.raises(UserError, match="cannot be written"), locked(tmp_path / "no" / "lock"):
    raise AssertionError
