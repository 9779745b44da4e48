"""Only absl's chatter is dropped."""

import os

import pytest

from dss_jax.data.quiet_import import quiet_import

CHATTER = b"WARNING: All log messages before absl::InitializeLog() is called are written\n"
NOTE = b"I0000 00:00:1795317615.651385    4354 port.cc:153] oneDNN custom operations are on.\n"
ERROR = b"E0000 00:00:1795317615.651385    4354 cuda.cc:1] failed call\n"


def test_notes_are_dropped_and_the_rest_is_written(capfd):
  with quiet_import():
    os.write(2, CHATTER + NOTE + ERROR + b"I am no note\n")
  os.write(2, b"after\n")
  assert capfd.readouterr().err == ERROR.decode() + "I am no note\nafter\n"


def test_a_failing_import_still_says_what_it_said(capfd):
  def fails():
    with quiet_import():
      os.write(2, NOTE + b"no such symbol\n")
      raise ImportError("broken")

  with pytest.raises(ImportError, match="broken"):
    fails()
  os.write(2, NOTE)
  assert capfd.readouterr().err == "no such symbol\n" + NOTE.decode()
