"""Folders in memory: what the kernel says of file systems, and who may enter."""

import pathlib
import subprocess
import sys

import pytest

from dss_jax.errors import UserError
from dss_jax.storage.memory import check_is_memory, free_bytes, has_swap, make_private_folder


def mounts(tmp_path, *lines):
  path = tmp_path / "mounts"
  path.write_text("".join(f"device {place} {kind} rw 0 0\n" for place, kind in lines))
  return path


def test_the_innermost_file_system_counts(tmp_path):
  inner = tmp_path / "with space" / "disk"
  inner.mkdir(parents=True)
  place = str(tmp_path / "with space").replace(" ", "\\040")
  found = mounts(tmp_path, ("/", "ext4"), (place, "tmpfs"), (f"{place}/disk", "xfs"))
  check_is_memory(tmp_path / "with space", found)
  for folder in (inner, tmp_path, tmp_path / "with space" / "none"):
    with pytest.raises(UserError, match="is not on a file system in memory"):
      check_is_memory(folder, found)
  link = tmp_path / "with space" / "link"
  link.symlink_to(inner)
  with pytest.raises(UserError, match="is not on a file system in memory"):
    check_is_memory(link, found)


def test_the_last_mount_of_a_place_counts(tmp_path):
  with pytest.raises(UserError, match="is not on a file system in memory"):
    check_is_memory(tmp_path, mounts(tmp_path, (tmp_path, "tmpfs"), (tmp_path, "ext4")))
  check_is_memory(tmp_path, mounts(tmp_path, (tmp_path, "ext4"), (tmp_path, "tmpfs")))


def test_elsewhere_than_on_linux(tmp_path):
  with pytest.raises(UserError, match="only Linux says"):
    check_is_memory(tmp_path, tmp_path / "none")


@pytest.mark.skipif(not pathlib.Path("/dev/shm").is_dir(), reason="this machine has no /dev/shm")
def test_this_machine():
  check_is_memory(pathlib.Path("/dev/shm"))
  assert free_bytes(pathlib.Path("/dev/shm")) > 0


def test_a_folder_for_its_owner_alone(tmp_path):
  folder = tmp_path / "own"
  for _ in range(2):
    make_private_folder(folder)
  assert folder.stat().st_mode & 0o777 == 0o700
  folder.chmod(0o750)
  with pytest.raises(UserError, match="open to others"):
    make_private_folder(folder)
  link = tmp_path / "link"
  link.symlink_to(tmp_path)
  with pytest.raises(UserError, match="another user's"):
    make_private_folder(link)
  with pytest.raises(UserError, match="cannot be made"):
    make_private_folder(tmp_path / "none" / "inner")


def test_swap(tmp_path):
  swaps = tmp_path / "swaps"
  assert not has_swap(swaps)
  swaps.write_text("Filename Type Size Used Priority\n")
  assert not has_swap(swaps)
  swaps.write_text(swaps.read_text() + "/swapfile file 2097148 0 -2\n")
  assert has_swap(swaps)


def test_no_core_file():
  code = (
    "import resource\nfrom dss_jax.storage.memory import forbid_core_dumps\n"
    "forbid_core_dumps()\nprint(resource.getrlimit(resource.RLIMIT_CORE))"
  )
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert found.stdout == "(0, 0)\n"
