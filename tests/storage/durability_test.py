"""A listener hears of files that are whole, and of nothing else."""

import pytest

from dss_jax.storage.atomic import atomic_target, sync, write_text
from dss_jax.storage.durability import durable, is_heard, whenever_durable


def test_it_is_heard_when_a_file_is_whole(tmp_path):
  heard = []
  path = tmp_path / "a"
  with whenever_durable(lambda: heard.append(path.read_text() if path.exists() else None)):
    assert is_heard()
    with atomic_target(path) as file:
      file.write(b"one")
      assert heard == []
    assert heard == ["one"]
    with path.open("a") as log:
      log.write("two")
      log.flush()
      sync(log)
    durable()
  assert heard == ["one", "onetwo", "onetwo"]
  assert not is_heard()
  write_text(path, "nobody hears this")
  assert len(heard) == 3


def test_what_a_listener_raises_passes_through(tmp_path):
  def refuse():
    raise OSError("the disk is full")

  with whenever_durable(refuse), pytest.raises(OSError, match="the disk is full"):
    write_text(tmp_path / "a", "x")
  assert not is_heard()
