"""When processes lose each other, JAX ends the program from within: here that is one sentence.

JAX's coordination service aborts a program, with a stack of C++ frames, as soon as another
process is gone, or when not all of them come at the start. So what libraries write straight to
the terminal goes to a file here, and the abort is caught, explained and made an exit code.
"""

import ctypes
import dataclasses
import os
import re
import signal
import sys
import tempfile

# What the service writes ahead of an abort.
_FATAL = "JAX distributed service detected fatal errors"
# Lines about meeting, that tell a user nothing.
_CHATTER = re.compile(
  r"\[Gloo\] |.*coordination_service|.*client\.h:\d+\]|Additional GRPC error|:UNKNOWN:|RPC: "
  r"|\*\*\* Check failure|\s+@ +0x|\s*$"
)
_MOST_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Rendezvous:
  """Where the processes of a run meet; what is not known yet is None.

  Attributes:
    coordinator: HOST:PORT of process 0.
    start_timeout_seconds: how long the first waits for the last at the start.
  """

  coordinator: str | None
  count: int | None
  index: int | None
  start_timeout_seconds: int


def sentence_of(log: str, meeting: Rendezvous) -> tuple[str, int] | None:
  """The sentence and the exit code for what JAX wrote as it aborted; None if it says no more.

  Exit code 2 is for processes that never met, which a user can mend; 1 for one that is lost.
  """
  start = log.find(_FATAL)
  if start < 0:
    return None
  fatal = log[start:]
  count = "the others" if meeting.count is None else f"all {meeting.count} processes"
  where = meeting.coordinator or "the coordinator"
  if "Unexpected task registered" in fatal:
    return (
      f"--process-id {meeting.index}: process 0 was started with a smaller --num-processes; give "
      "every process the same number",
      2,
    )
  if "ALREADY_EXISTS" in fatal:
    return (
      f"--process-id {meeting.index}: another process came with the same number; give each its "
      "own, from 0 up",
      2,
    )
  if "RegisterTask" in fatal:
    reached = "" if meeting.index == 0 else f"process 0 could not be reached at {where}, or "
    return (
      f"{reached}not {count} came to {where} within {meeting.start_timeout_seconds} seconds; start "
      "every one, with the same --coordinator and --num-processes and each with its own "
      "--process-id",
      2,
    )
  go_on = (
    "so this one ends, too; start all of them again, with as many processes as you like, to go "
    "on from the newest checkpoint"
  )
  of = "" if meeting.count is None else f" of {meeting.count}"
  silent = re.search(r"heartbeats\):\s*((?:\S*\d+[\s,]*)+)", fatal)
  if silent:
    numbers = ", ".join(re.findall(r"\d+(?=[\s,]|$)", silent[1]))
    return f"process {numbers}{of} no longer answers, {go_on}", 1
  if "Failed to send RPC to coordination service" in fatal:
    return f"process 0{of}, where the others meet, no longer answers, {go_on}", 1
  status = fatal.partition("absl::Status:")[2].strip().partition("\n")[0][:200]
  return f"the processes have lost each other ({status}), {go_on}", 1


class LowLevelOutput:
  """Holds what libraries write to descriptors 1 and 2, which Python's own streams bypass from now.

  Once set up it stays: a program's end comes from anywhere.
  """

  def __init__(self):
    self._file = tempfile.TemporaryFile()  # noqa: SIM115
    self._read = 0
    self.meeting: Rendezvous | None = None
    # Of a program that is ending already: losing the others is no news any more.
    self.exit_code: int | None = None
    # Python writes on as before, to the terminal or file that these are.
    sys.stdout.flush()
    sys.stderr.flush()
    for name in ("stdout", "stderr"):
      stream = getattr(sys, name)
      kept = os.dup({"stdout": 1, "stderr": 2}[name])
      again = open(kept, "w", buffering=1, encoding=stream.encoding, errors=stream.errors)  # noqa: SIM115
      setattr(sys, name, again)
    for descriptor in (1, 2):
      os.dup2(self._file.fileno(), descriptor)
    # A Python handler would run too late: the thread that aborts never comes back to Python.
    self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._on_abort)
    ctypes.CDLL(None).signal(signal.SIGABRT, self._handler)

  def forward(self) -> None:
    """Writes lines that came since the last call to standard error, without mere chatter."""
    text = os.pread(self._file.fileno(), _MOST_BYTES, self._read)
    whole = text[: text.rfind(b"\n") + 1]
    self._read += len(whole)
    for line in whole.decode("utf-8", "replace").splitlines():
      if not _CHATTER.match(line):
        print(line, file=sys.stderr)

  def _on_abort(self, number: int) -> None:
    if self.exit_code is not None:
      os._exit(self.exit_code)
    start = max(os.fstat(self._file.fileno()).st_size - _MOST_BYTES, 0)
    text = os.pread(self._file.fileno(), _MOST_BYTES, start).decode("utf-8", "replace")
    ending = None if self.meeting is None else sentence_of(text, self.meeting)
    if ending is None:
      # Something else: nothing of what it wrote may be lost. The abort goes on.
      os.write(sys.stderr.fileno(), text.encode("utf-8", "replace"))
      return
    os.write(sys.stderr.fileno(), f"dss: {ending[0]}\n".encode())
    os._exit(ending[1])
