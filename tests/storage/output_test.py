"""Writing to standard output, to a reader that has gone, and to a disk that is full."""

import os
import subprocess
import sys

import pytest

WRITE_TO_OUTPUT = """
import sys
from dss_jax.storage.atomic import write_text
print("before", flush=True)
write_text(sys.argv[1], "rows\\n" * int(sys.argv[2]))
print("after")
"""


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_standard_output_is_written_in_its_place(tmp_path, name):
  with (tmp_path / "out").open("w") as out:
    subprocess.run([sys.executable, "-c", WRITE_TO_OUTPUT, name, "2"], stdout=out, check=True)
  assert (tmp_path / "out").read_text() == "before\nrows\nrows\nafter\n"
  assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("times", ["1", "1000000"])
def test_a_reader_that_has_gone_is_no_failure_of_the_target(times):
  program = WRITE_TO_OUTPUT.replace('print("before", flush=True)', "").replace('print("after")', "")
  line = f'"$0" -c "$1" - {times} | true; exit ${{PIPESTATUS[0]}}'
  result = subprocess.run(["bash", "-c", line, sys.executable, program], capture_output=True)
  # A pipe may take a short text before its reader has gone.
  assert result.returncode == 0 or b"ReaderGone" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("size", [2**14, 2**22])
def test_a_file_that_has_no_room_is_named_and_leaves_nothing(tmp_path, size):
  program = (
    "import sys; from dss_jax.errors import UserError\n"
    "from dss_jax.storage.atomic import write_text\n"
    "try:\n  write_text('x', 'a' * int(sys.argv[1]))\nexcept UserError as error:\n  print(error)"
  )
  # A file of this shell has at most 8 KiB.
  command = ["bash", "-c", f'ulimit -f 8; "$0" -c "$1" {size}', sys.executable, program]
  result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert result.stderr == ""
  assert result.stdout.startswith("x: cannot be written (File too large); ")
  assert os.listdir(tmp_path) == []
