"""An encrypted job's files: sealed as they become whole, and opened again as they were."""

import shutil

import pytest

from dss_jax.annotation.journal import Journal
from dss_jax.jobs.encryption.sealed_job import SealedJob
from dss_jax.storage.atomic import write_text
from dss_jax.storage.durability import durable
from dss_jax.storage.sealed import DataKey, SealedError, read_header
from dss_jax.teachers.base import TeacherResponse

KEY = DataKey(bytes(range(32)), "job-1", "projects/p/k", "d3JhcHBlZA==")


@pytest.fixture
def disk(tmp_path):
  folder = tmp_path / "disk"
  folder.mkdir()
  return folder


@pytest.fixture
def plain(tmp_path):
  return tmp_path / "memory"


@pytest.fixture
def work(plain, disk):
  """Opens the job's files, in a new process as it were, whose memory is empty."""

  def work():
    shutil.rmtree(plain, ignore_errors=True)
    (plain / "model" / "checkpoints").mkdir(parents=True)
    return SealedJob(plain, disk, KEY).kept()

  return work


def sealed(disk):
  paths = [path for path in disk.rglob("*") if path.is_file()]
  return {str(path.relative_to(disk)): read_header(path).kind for path in paths}


def step(plain, number, weights):
  """A checkpoint as Orbax commits it."""
  part = plain / "model" / "checkpoints" / f"{number}.orbax-checkpoint-tmp"
  (part / "params").mkdir(parents=True)
  (part / "params" / "weights").write_bytes(weights)
  durable()
  part.rename(part.with_name(str(number)))
  durable()


def test_what_is_whole_is_sealed_and_opened_again(work, plain, disk):
  with work():
    write_text(plain / "model" / "card.json", "secret")
    assert sealed(disk) == {"model/card.json.sealed": "file"}
    step(plain, 2, b"secret weights")
    assert sealed(disk)["model/checkpoints/2.sealed"] == "folder"
    for unsealed in ("cache", "tmp", ".hidden"):
      (plain / unsealed).mkdir()
      write_text(plain / unsealed / "x", "secret")
    write_text(plain / "model" / ".lock", "")
  assert not plain.exists()
  assert set(sealed(disk)) == {"model/card.json.sealed", "model/checkpoints/2.sealed"}
  assert all(b"secret" not in path.read_bytes() for path in disk.rglob("*.sealed"))
  before = {path: path.stat().st_ino for path in disk.rglob("*.sealed")}
  with work():
    assert (plain / "model" / "card.json").read_text() == "secret"
    assert (plain / "model/checkpoints/2/params/weights").read_bytes() == b"secret weights"
    durable()
  # Nothing was new, so nothing was written.
  assert {path: path.stat().st_ino for path in disk.rglob("*.sealed")} == before


def test_the_checkpoints_are_those_in_memory(work, plain, disk):
  with work():
    step(plain, 2, b"2")
    step(plain, 4, b"4")
    shutil.rmtree(plain / "model" / "checkpoints" / "2")
    durable()
    assert set(sealed(disk)) == {"model/checkpoints/4.sealed"}
    # All of memory lost is no reason to lose the disk, too.
    shutil.rmtree(plain / "model")
    durable()
  assert set(sealed(disk)) == {"model/checkpoints/4.sealed"}


def append(path, text):
  with path.open("a") as file:
    file.write(text)
  durable()


def test_what_grows_is_appended_to(work, plain, disk):
  name = "worker.log.sealed"
  with work():
    append(plain / "worker.log", "one\n")
    assert sealed(disk)[name] == "file"
    append(plain / "worker.log", "two\n")
    inode, size = (disk / name).stat().st_ino, (disk / name).stat().st_size
    assert sealed(disk)[name] == "log"
    append(plain / "worker.log", "three\n")
    assert ((disk / name).stat().st_ino, (disk / name).stat().st_size) == (inode, size + 26)
    # Another one of that name, as when metrics after a checkpoint are cut off.
    write_text(plain / "worker.log", "1\n")
    assert sealed(disk)[name] == "file"
    append(plain / "worker.log", "2\n")
  for _ in range(2):
    with work():
      assert (plain / "worker.log").read_text().startswith("1\n2\n")
      append(plain / "worker.log", "again\n")
  with work():
    assert (plain / "worker.log").read_text() == "1\n2\nagain\nagain\n"


def key_of(number):
  return f"{number:016x}" + "0" * 16


def test_no_answer_of_a_teacher_is_lost(work, plain, disk):
  """The journal is synced in a thread of its own; a kill leaves what was sealed until then."""
  with work():
    journal = Journal(plain / "model" / "annotated.answers")
    for number in range(50):
      journal.append(key_of(number), TeacherResponse(text=f"secret {number}"))
    journal.close()
    copy = disk.with_name("copy")
    shutil.copytree(disk, copy)
  shutil.rmtree(disk)
  copy.rename(disk)
  with work():
    journal = Journal(plain / "model" / "annotated.answers")
    assert len(journal) == 50
    assert journal.get(key_of(7)).response.text == "secret 7"
    journal.close()


def test_an_interrupted_append_is_begun_anew(work, plain, disk, monkeypatch):
  """Else the next one would use the number of a chunk, which a disk may remember, again."""
  with work():
    for text in ("one\n", "two\n"):
      append(plain / "worker.log", text)
    inode = (disk / "worker.log.sealed").stat().st_ino

    def stop(log, content):
      log._file.write(b"\0\0\0\x14half")
      raise SystemExit

    with monkeypatch.context() as patch:
      patch.setattr("dss_jax.jobs.encryption.sealed_job.SealedLog.append", stop)
      with pytest.raises(SystemExit):
        append(plain / "worker.log", "three\n")
  assert (disk / "worker.log.sealed").stat().st_ino != inode
  with work():
    assert (plain / "worker.log").read_text() == "one\ntwo\nthree\n"


@pytest.mark.parametrize("damage", ["cut", "changed", "swapped", "renamed"])
def test_damaged_files_are_not_opened(work, plain, disk, damage):
  with work():
    for name in ("a", "b"):
      write_text(plain / name, f"secret {name}")
  one, other = disk / "a.sealed", disk / "b.sealed"
  content = one.read_bytes()
  if damage == "cut":
    one.write_bytes(content[:-1])
  elif damage == "changed":
    one.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  elif damage == "swapped":
    one.write_bytes(other.read_bytes())
  else:
    one.rename(disk / "c.sealed")
  with pytest.raises(SealedError) as error, work():
    pass
  assert "\n" not in str(error.value)
  assert not plain.exists()
