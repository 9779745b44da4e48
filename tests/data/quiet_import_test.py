"""Only absl's notes and warnings are dropped."""

import os

import pytest

from dss_jax.data.quiet_import import quiet_import

LOGGING_WARNING = b"WARNING: All log messages before absl::InitializeLog() is called are written\n"
NOTE = b"I0000 00:00:1795317615.651385    4354 port.cc:153] oneDNN custom operations are on.\n"
ERROR = b"E0000 00:00:1795317615.651385    4354 cuda.cc:1] failed call\n"


def test_notes_are_dropped_and_the_rest_is_written(capfd):
  with quiet_import():
    os.write(2, LOGGING_WARNING + NOTE + ERROR + b"not a note\n")
  os.write(2, b"after\n")
  assert capfd.readouterr().err == ERROR.decode() + "not a note\nafter\n"


def test_the_message_of_a_failing_import_is_printed(capfd):
  def fails():
    with quiet_import():
      os.write(2, NOTE + b"no such symbol\n")
      raise ImportError("broken")

  with pytest.raises(ImportError, match="broken"):
    fails()
  os.write(2, NOTE)
  assert capfd.readouterr().err == "no such symbol\n" + NOTE.decode()
