"""Folders that appear whole or not at all, with several writers, killed ones, damaged ones."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from dss_jax.storage.atomic import publish, synced_file


def _fill(part: pathlib.Path, text: bytes = b"whole") -> None:
  with synced_file(part / "a") as file:
    file.write(text)


def _is_whole(folder: pathlib.Path) -> bool:
  return (folder / "a").is_file() and (folder / "a").read_bytes() == b"whole"


def _publish(folder: pathlib.Path, build=_fill) -> None:
  publish(folder, build, lambda: _is_whole(folder))


def test_the_folder_appears_when_it_is_filled(tmp_path):
  folder = tmp_path / "deep" / "store"

  def build(part):
    _fill(part)
    assert not folder.exists()

  _publish(folder, build)
  assert _is_whole(folder)
  assert os.listdir(folder.parent) == ["store"]


def test_a_failure_leaves_nothing(tmp_path):
  def build(part):
    _fill(part)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    _publish(tmp_path / "store", build)
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["content", "empty folder", "a file in its place"])
def test_a_damaged_folder_is_replaced(tmp_path, damage):
  folder = tmp_path / "store"
  if damage == "a file in its place":
    folder.write_bytes(b"x")
  else:
    folder.mkdir()
  if damage == "content":
    (folder / "a").write_bytes(b"half")
  _publish(folder)
  assert _is_whole(folder)
  assert os.listdir(tmp_path) == ["store"]


def test_the_faster_of_two_is_kept(tmp_path):
  folder = tmp_path / "store"

  def build(part):
    _publish(folder)
    (folder / "first").touch()
    _fill(part)

  _publish(folder, build)
  assert sorted(os.listdir(folder)) == ["a", "first"]
  assert os.listdir(tmp_path) == ["store"]


def test_many_at_once_all_end_well(tmp_path):
  folder = tmp_path / "store"
  folder.mkdir()
  (folder / "a").write_bytes(b"damaged")
  barrier = threading.Barrier(8)
  failures = []

  def run():
    def build(part):
      _fill(part)
      barrier.wait()

    try:
      _publish(folder, build)
    except Exception as error:
      failures.append(error)

  threads = [threading.Thread(target=run) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert failures == []
  assert _is_whole(folder)
  assert os.listdir(tmp_path) == ["store"]


KILLED = """
import pathlib, sys, time
from dss_jax.storage.atomic import publish
def build(part):
  (part / "a").write_bytes(b"half")
  print("written", flush=True)
  time.sleep(600)
publish(pathlib.Path(sys.argv[1]), build, lambda: False)
"""


def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path):
  folder = tmp_path / "store"
  with subprocess.Popen(
    [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True
  ) as process:
    assert process.stdout.readline() == "written\n"
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".store.")
    # While it lives, nobody takes its folder away.
    _publish(tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == [left, "other"]
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert not folder.exists()
  _publish(folder)
  assert sorted(os.listdir(tmp_path)) == ["other", "store"]


def test_parts_of_another_machine_are_left_for_a_week(tmp_path):
  assert socket.gethostname() != "elsewhere"
  young, old = (tmp_path / f".store.elsewhere.1.0000000{i}.part" for i in (1, 2))
  foreign = tmp_path / ".notes.part"
  for path in (young, old, foreign):
    path.mkdir()
  eight_days_ago = time.time() - 8 * 24 * 3600
  os.utime(old, (eight_days_ago, eight_days_ago))
  os.utime(foreign, (eight_days_ago, eight_days_ago))
  _publish(tmp_path / "store")
  assert sorted(os.listdir(tmp_path)) == sorted([young.name, foreign.name, "store"])
