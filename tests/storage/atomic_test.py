"""Files and folders appear whole or not at all, with several writers, killed or failing."""

import contextlib
import gzip
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import fsspec
import pytest

from dss_jax.errors import UserError
from dss_jax.storage import atomic
from dss_jax.storage.atomic import (
  atomic_target,
  copy_tree,
  make_folder,
  publishing,
  remove,
  sync,
  synced_file,
  withdraw,
  write_bytes,
  write_text,
  writing,
)
from dss_jax.storage.files import exists, join, list_folder, read_bytes, read_text


def _fill(part: pathlib.Path, text: bytes = b"whole") -> None:
  with synced_file(part / "a") as file:
    file.write(text)


def _is_whole(folder: pathlib.Path) -> bool:
  # Another thread may move the folder away at any time.
  try:
    return (folder / "a").read_bytes() == b"whole"
  except (FileNotFoundError, NotADirectoryError):
    return False


def _publish(folder: pathlib.Path, build=_fill) -> None:
  with publishing(folder, lambda: _is_whole(folder)) as part:
    build(part)


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
import sys, time
from dss_jax.storage.atomic import publishing
with publishing(sys.argv[1]) as part:
  (part / "a").write_bytes(b"half")
  print("written", flush=True)
  time.sleep(600)
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
  # A killed writer of a file leaves one beside it.
  (tmp_path / left.replace(".store.", ".index.json.")).write_text("half")
  _publish(folder)
  assert sorted(os.listdir(tmp_path)) == ["other", "store"]


def test_a_withdrawn_folder_loses_its_name_first(tmp_path, monkeypatch):
  _publish(tmp_path / "store")
  seen = []
  monkeypatch.setattr(atomic.shutil, "rmtree", lambda *_, **__: seen.append(os.listdir(tmp_path)))
  withdraw(tmp_path / "store")
  monkeypatch.undo()
  ((left,),) = seen
  assert left.startswith(".store.")
  with pytest.raises(UserError, match="store: cannot be written"):
    withdraw(tmp_path / "store")


def test_a_copied_tree(tmp_path):
  _publish(tmp_path / "store", build=_fill_deep)
  copy_tree(tmp_path / "store", tmp_path / "new" / "copy")
  assert read_text(tmp_path / "new" / "copy" / "deep" / "b") == "below"
  with pytest.raises(FileExistsError):
    copy_tree(tmp_path / "store", tmp_path / "new" / "copy")


def test_a_part_of_a_living_process_is_left_whatever_the_clock_says(tmp_path):
  part = tmp_path / f".store.{atomic._host()}.{os.getpid()}.00000001.part"
  for seconds in (0, 2**33):
    part.mkdir(exist_ok=True)
    os.utime(part, (seconds, seconds))
    with publishing(tmp_path / f"store{seconds}") as other:
      _fill(other)
    assert part.is_dir()


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


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
  """An empty folder, as a path and as a URL."""
  return str(tmp_path) if request.param == "local" else f"memory:/{tmp_path}"


def _names(place: str) -> list[str]:
  return list_folder(place) if exists(place) else []


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_file_is_written_and_read_back(place, name):
  path = join(place, name)
  write_text(path, "zwölf\n")
  assert read_text(path) == "zwölf\n"
  write_bytes(path, b"new")
  assert read_bytes(path) == b"new"
  assert _names(place) == [name]
  with fsspec.open(path, "rb") as file:
    raw = file.read()
  assert (gzip.decompress(raw) if name.endswith(".gz") else raw) == b"new"


@pytest.mark.parametrize("error", [OSError("of the body"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_body_that_raises_changes_nothing(place, before, error):
  path = join(place, "a")
  if before is not None:
    write_bytes(path, before)

  def write():
    with atomic_target(path) as file:
      file.write(b"x" * 3_000_000)
      raise error

  with pytest.raises(type(error)) as caught:
    write()
  assert caught.value is error
  assert _names(place) == ([] if before is None else ["a"])
  assert before is None or read_bytes(path) == before


def test_a_file_has_its_name_only_when_it_is_whole(place):
  path = join(place, "a")
  with atomic_target(path) as file:
    file.write(b"half")
    assert not exists(path)
  assert exists(path)


def test_two_files_may_be_written_at_once(place):
  one, other = join(place, "one"), join(place, "other")
  with atomic_target(one) as first:
    first.write(b"1")
    with atomic_target(other) as second:
      second.write(b"2")
    assert read_bytes(other) == b"2"
    first.write(b"1")
  assert read_bytes(one) == b"11"
  write_bytes(one, b"after")
  assert read_bytes(one) == b"after"


def test_where_a_file_cannot_be_written_is_one_sentence(place):
  write_bytes(join(place, "file"), b"x")
  path = join(place, "file", "below")
  with pytest.raises(UserError, match=r"cannot be written \(.+\); name a place") as caught:
    write_bytes(path, b"x")
  assert str(caught.value).startswith(f"{path}: ")
  assert _names(place) == ["file"]


def test_a_failing_commit_is_one_sentence(monkeypatch, tmp_path):
  def fails(self):
    raise RuntimeError("quota exceeded")

  monkeypatch.setattr(fsspec.implementations.memory.MemoryFile, "commit", fails)
  path = f"memory:/{tmp_path}/a"
  with pytest.raises(UserError, match=r"cannot be written \(quota exceeded\)"):
    write_bytes(path, b"x")
  monkeypatch.undo()
  assert not exists(path)
  write_bytes(path, b"later")
  assert read_bytes(path) == b"later"


def test_a_folder_is_no_target(tmp_path):
  with pytest.raises(UserError, match="a directory"):
    write_bytes(tmp_path, b"x")


def test_a_long_name_leaves_room_for_the_name_of_the_part(tmp_path):
  for name in ("x" * 255, "é" * 127):
    write_bytes(tmp_path / name, b"x")
    assert (tmp_path / name).read_bytes() == b"x"


def test_links_are_followed_pipes_written_to_and_the_mode_is_the_usual(tmp_path):
  real, link = tmp_path / "real", tmp_path / "link"
  real.touch()
  link.symlink_to(real)
  write_bytes(link, b"a")
  assert link.is_symlink()
  assert real.read_bytes() == b"a"
  usual = tmp_path / "usual"
  usual.touch()
  assert stat.S_IMODE(real.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)

  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
  write_bytes(pipe, b"a")
  assert os.read(reader, 100) == b"a"
  os.close(reader)
  assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_file_is_synced_before_it_takes_its_name(tmp_path, monkeypatch):
  calls = []
  fsync, replace = os.fsync, os.replace
  monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
  monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names)))
  write_bytes(tmp_path / "a", b"x")
  # The file, its name, and the folder that has the name in it.
  assert calls == ["fsync", "replace", "fsync"]
  with open(tmp_path / "journal", "a") as file:
    sync(file)
  assert calls[3:] == ["fsync"]


def test_writing_raises_only_what_it_is_told_to():
  with pytest.raises(UserError, match=r"^x: cannot be written \(full\); "), writing("x"):
    raise OSError(28, "full")
  with pytest.raises(RuntimeError), writing("x"):
    raise RuntimeError
  with pytest.raises(UserError, match="cannot be written"), writing("x", Exception):
    raise RuntimeError
  with pytest.raises(UserError, match=r"^another$"), writing("x", Exception):
    raise UserError("another")


def test_folders_are_made_and_removed(place):
  folder = join(place, "deep", "folder")
  make_folder(folder)
  make_folder(folder)
  assert list_folder(folder) == []
  write_bytes(join(folder, "a"), b"a")
  write_bytes(join(folder, "b"), b"b")
  remove(join(folder, "a"))
  assert list_folder(folder) == ["b"]
  remove(join(place, "deep"))
  assert not exists(folder)
  assert not exists(join(folder, "b"))
  remove(join(place, "deep"))
  write_bytes(join(place, "file"), b"x")
  with pytest.raises(UserError, match="cannot be written"):
    make_folder(join(place, "file", "below"))


def test_removing_a_link_keeps_its_target(tmp_path):
  (tmp_path / "real").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "real")
  remove(tmp_path / "link")
  assert os.listdir(tmp_path) == ["real"]


def _fill_deep(part: pathlib.Path) -> None:
  _fill(part)
  (part / "deep").mkdir()
  write_text(part / "deep" / "b", "below")


def test_a_folder_is_published_whole(place):
  folder = join(place, "out")
  with publishing(folder) as part:
    _fill_deep(part)
    assert not exists(folder)
  assert list_folder(folder) == ["a", "deep"]
  assert read_text(join(folder, "deep", "b")) == "below"
  assert _names(place) == ["out"]


def test_a_failure_publishes_nothing(place):
  def publish():
    with publishing(join(place, "out")) as part:
      _fill_deep(part)
      raise ValueError("broken")

  with pytest.raises(ValueError, match="broken"):
    publish()
  assert _names(place) == []


@pytest.mark.parametrize("is_whole", [None, True, False])
def test_a_folder_with_files_is_replaced_only_if_it_is_not_whole(place, is_whole):
  folder = join(place, "out")
  make_folder(folder)
  write_text(join(folder, "old"), "old")
  publish = publishing(folder, None if is_whole is None else lambda: is_whole)
  refused = pytest.raises((OSError, UserError)) if is_whole is None else contextlib.nullcontext()
  with refused, publish as part:
    _fill(part)
  assert list_folder(folder) == (["a"] if is_whole is False else ["old"])
  assert _names(place) == ["out"]


def test_an_empty_folder_is_filled(place):
  folder = join(place, "out")
  make_folder(folder)
  with publishing(folder) as part:
    _fill(part)
  assert list_folder(folder) == ["a"]


def test_an_upload_that_fails_leaves_nothing(tmp_path, monkeypatch):
  folder = f"memory:/{tmp_path}/out"
  open_file = fsspec.implementations.memory.MemoryFileSystem._open

  def fails(self, path, mode="rb", **options):
    if path.endswith("/b"):
      raise RuntimeError("connection lost")
    return open_file(self, path, mode=mode, **options)

  monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "_open", fails)
  with (
    pytest.raises(UserError, match=r"out: cannot be written \(connection lost\)"),
    publishing(folder) as part,
  ):
    _fill_deep(part)
  assert not exists(folder)
