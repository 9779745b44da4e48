"""A pipe is read once and can be opened again; a file is opened as it is."""

import os
import subprocess
import sys
import threading

import pytest

from dss_jax.storage.files import open_text, read_text
from dss_jax.storage.pipes import readable_file


@pytest.fixture
def pipe(tmp_path):
  """A named pipe that a thread writes "a\\nb\\n" into, once."""
  path = tmp_path / "pipe.jsonl"
  os.mkfifo(path)
  thread = threading.Thread(target=path.write_text, args=("a\nb\n",))
  thread.start()
  yield path
  thread.join()


def test_a_named_pipe_can_be_read_again_and_at_the_same_time(pipe, capsys):
  with open_text(pipe) as first:
    assert first.readline() == "a\n"
    assert read_text(pipe) == "a\nb\n"
    assert first.readline() == "b\n"
  assert capsys.readouterr().err == f"{pipe}: a pipe, which is read to its end and copied\n"


def test_a_file_is_opened_as_it_is(tmp_path):
  path = tmp_path / "x"
  path.write_text("")
  assert readable_file(str(path)) == str(path)
  assert readable_file(str(tmp_path)) == str(tmp_path)
  with pytest.raises(FileNotFoundError):
    readable_file(str(tmp_path / "absent"))


def test_a_dash_is_standard_input():
  program = (
    "from dss_jax.storage.files import read_text\n"
    "print(repr(read_text('-') + read_text('/dev/stdin') + read_text('/dev/fd/0')))"
  )
  result = subprocess.run(
    [sys.executable, "-c", program], input="a\n", capture_output=True, text=True
  )
  assert result.stdout == repr("a\n" * 3) + "\n"
