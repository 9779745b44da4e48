"""Turns an abort by JAX's coordination service into one sentence and an exit code.

The service aborts a program, with a stack of C++ frames, as soon as another process is lost, or
if not all processes connect at the start. So the low-level output of libraries is redirected to a
file, and a handler of SIGABRT reads the reason there.
"""

import ctypes
import dataclasses
import os
import re
import signal
import sys
import tempfile

# The first words of the service's message before an abort.
_FATAL = "JAX distributed service detected fatal errors"
# Lines about connecting, which do not help a user.
_NOISE = re.compile(
  r"\[Gloo\] |.*coordination_service|.*client\.h:\d+\]|Additional GRPC error|:UNKNOWN:|RPC: "
  r"|\*\*\* Check failure|\s+@ +0x|\s*$"
)
_MAX_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Rendezvous:
  """Where the processes of a run connect; None for what is not known yet.

  Attributes:
    coordinator: HOST:PORT of process 0.
    start_timeout_seconds: how long a process waits for the others at the start.
  """

  coordinator: str | None
  num_processes: int | None
  process_id: int | None
  start_timeout_seconds: int


def explain_abort(log: str, rendezvous: Rendezvous) -> tuple[str, int] | None:
  """Returns a sentence and an exit code for the log of an abort; None for any other log.

  Exit code 2 is for processes that never connected, which a user can mend; 1 for a lost process.
  """
  start = log.find(_FATAL)
  if start < 0:
    return None
  fatal = log[start:]
  count = (
    "the others"
    if rendezvous.num_processes is None
    else f"all {rendezvous.num_processes} processes"
  )
  where = rendezvous.coordinator or "the coordinator"
  if "Unexpected task registered" in fatal:
    return (
      f"--process-id {rendezvous.process_id}: process 0 was started with a smaller "
      "--num-processes; give every process the same number",
      2,
    )
  if "ALREADY_EXISTS" in fatal:
    return (
      f"--process-id {rendezvous.process_id}: another process has the same number; give each its "
      "own, from 0 up",
      2,
    )
  if "RegisterTask" in fatal:
    reached = (
      "" if rendezvous.process_id == 0 else f"process 0 could not be reached at {where}, or "
    )
    return (
      f"{reached}not {count} connected to {where} within {rendezvous.start_timeout_seconds} "
      "seconds; start every one, with the same --coordinator and --num-processes and each with its "
      "own --process-id",
      2,
    )
  advice = (
    "so this one ends, too; start all of them again, with any number of processes, to continue "
    "from the newest checkpoint"
  )
  of = "" if rendezvous.num_processes is None else f" of {rendezvous.num_processes}"
  silent = re.search(r"heartbeats\):\s*((?:\S*\d+[\s,]*)+)", fatal)
  if silent:
    numbers = ", ".join(re.findall(r"\d+(?=[\s,]|$)", silent[1]))
    return f"process {numbers}{of} no longer answers, {advice}", 1
  if "Failed to send RPC to coordination service" in fatal:
    return f"process 0{of}, the coordinator, no longer answers, {advice}", 1
  status = fatal.partition("absl::Status:")[2].strip().partition("\n")[0][:200]
  return f"the processes have lost each other ({status}), {advice}", 1


class CapturedOutput:
  """Redirects file descriptors 1 and 2 to a file; Python's own streams still reach the terminal.

  It is never undone, since an abort may come from any thread at any time.
  """

  def __init__(self):
    self._file = tempfile.TemporaryFile()  # noqa: SIM115
    self._forwarded_bytes = 0
    self.rendezvous: Rendezvous | None = None
    # Set when this process is already exiting, so that a lost peer is expected.
    self.exit_code: int | None = None
    # Python's streams keep the terminal or file that they had.
    sys.stdout.flush()
    sys.stderr.flush()
    for name in ("stdout", "stderr"):
      stream = getattr(sys, name)
      duplicate = os.dup({"stdout": 1, "stderr": 2}[name])
      copy = open(duplicate, "w", buffering=1, encoding=stream.encoding, errors=stream.errors)  # noqa: SIM115
      setattr(sys, name, copy)
    for descriptor in (1, 2):
      os.dup2(self._file.fileno(), descriptor)
    # A Python handler would run too late: the aborting thread never returns to Python.
    self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._on_abort)
    ctypes.CDLL(None).signal(signal.SIGABRT, self._handler)

  def forward(self) -> None:
    """Copies the complete lines since the last call to standard error, without the noise."""
    text = os.pread(self._file.fileno(), _MAX_BYTES, self._forwarded_bytes)
    lines = text[: text.rfind(b"\n") + 1]
    self._forwarded_bytes += len(lines)
    for line in lines.decode("utf-8", "replace").splitlines():
      if not _NOISE.match(line):
        print(line, file=sys.stderr)

  def _on_abort(self, number: int) -> None:
    if self.exit_code is not None:
      os._exit(self.exit_code)
    start = max(os.fstat(self._file.fileno()).st_size - _MAX_BYTES, 0)
    text = os.pread(self._file.fileno(), _MAX_BYTES, start).decode("utf-8", "replace")
    explained = None if self.rendezvous is None else explain_abort(text, self.rendezvous)
    if explained is None:
      # Another cause: print everything, and let the abort proceed.
      os.write(sys.stderr.fileno(), text.encode("utf-8", "replace"))
      return
    os.write(sys.stderr.fileno(), f"dss: {explained[0]}\n".encode())
    os._exit(explained[1])
