"""Suppression of the messages that a C++ library prints while it is imported."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# absl's notes and warnings ("I0000 00:00:... port.cc:153] ...") and its line about logging.
_NOTE = re.compile(rb"[IW]\d{4} |WARNING: All log messages before absl::InitializeLog")


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
  """Drops absl's notes and warnings from file descriptor 2; writes everything else at the end.

  They are printed by static initialisers, before any setting of the library is read.
  """
  sys.stderr.flush()
  with tempfile.TemporaryFile() as captured:
    terminal = os.dup(2)
    os.dup2(captured.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(terminal, 2)
      os.close(terminal)
      captured.seek(0)
      for line in captured:
        if not _NOTE.match(line):
          os.write(2, line)
