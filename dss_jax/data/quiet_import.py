"""Keeps the chatter of a C++ library's import off the terminal, and nothing else."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# absl's notes and warnings ("I0000 00:00:... port.cc:153] ...") and its line about them.
_CHATTER = re.compile(rb"[IW]\d{4} |WARNING: All log messages before absl::InitializeLog")


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
  """Drops absl's notes and warnings from file descriptor 2; all else is written at the end.

  They are printed by static initialisers, before any setting of the library is read.
  """
  sys.stderr.flush()
  with tempfile.TemporaryFile() as held:
    terminal = os.dup(2)
    os.dup2(held.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(terminal, 2)
      os.close(terminal)
      held.seek(0)
      for line in held:
        if not _CHATTER.match(line):
          os.write(2, line)
