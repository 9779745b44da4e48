"""JAX's messages about a lost process become one sentence; other aborts are left alone."""

import os
import signal
import subprocess
import sys

import pytest

from dss_jax.parallel.abort import Rendezvous, explain_abort

FATAL = (
  "F1122 06:42:43.232739   13929 client.h:80] Terminating process because the JAX distributed "
  "service detected fatal errors. This most likely indicates that another task died. "
  "absl::Status: "
)
STACK = (
  "\n*** Check failure stack trace: ***\n    @     0x7fdd0ec40634  absl::LogMessage::Flush()\n"
)


def rendezvous(index, count=2):
  return Rendezvous("10.0.0.1:8476", count, index, start_timeout_seconds=7)


@pytest.mark.parametrize(
  ("status", "index", "code", "says"),
  [
    (
      "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/"
      "RegisterTask",
      1,
      2,
      ["process 0 could not be reached at 10.0.0.1:8476", "all 2 processes", "within 7 seconds"],
    ),
    (
      "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/"
      "RegisterTask",
      0,
      2,
      ["dss: not all 2 processes connected to 10.0.0.1:8476 within 7 seconds", "--num-processes"],
    ),
    (
      "INVALID_ARGUMENT: Unexpected task registered with task=3\n\nRPC: /xla.coordination."
      "CoordinationService/RegisterTask",
      3,
      2,
      ["--process-id 3", "smaller --num-processes"],
    ),
    (
      "ALREADY_EXISTS: Aborted connect attempt as there is a request from a newer incarnation."
      "\n\nRPC: /xla.coordination.CoordinationService/RegisterTask",
      1,
      2,
      ["--process-id 1", "the same number"],
    ),
    (
      "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\nThe tasks "
      "have crashed. Check the task logs for 7 days.",
      0,
      1,
      ["dss: process 1 of 2 no longer answers", "start all of them again"],
    ),
    (
      "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\n12\nThe "
      "tasks have crashed.",
      0,
      1,
      ["process 1, 12 of 2 no longer answers"],
    ),
    (
      "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was "
      "preempted",
      1,
      1,
      ["process 0 of 2, the coordinator, no longer answers", "newest checkpoint"],
    ),
    ("INTERNAL: of a new kind\nmore", 1, 1, ["lost each other (INTERNAL: of a new kind)"]),
  ],
)
def test_each_kind_of_abort_is_explained(status, index, code, says):
  log = f"something before\n{FATAL}{status}{STACK}"
  sentence, exit_code = explain_abort(log, rendezvous(index))
  assert exit_code == code
  assert "\n" not in sentence
  for part in says:
    assert part in f"dss: {sentence}"


def test_another_message_is_not_explained():
  assert (
    explain_abort("F1122 cuda.cc:7] Check failed: out of memory" + STACK, rendezvous(0)) is None
  )


PROGRAM = """
import os, sys
from dss_jax.parallel.abort import CapturedOutput, Rendezvous
output = CapturedOutput()
output.rendezvous = Rendezvous("h:1", 2, 0, 7)
output.exit_code = int(sys.argv[2]) if len(sys.argv) > 2 else None
print("on standard output")
print("on standard error", file=sys.stderr)
os.write(1, b"[Gloo] Rank 0 is connected to 1 peer ranks.\\n")
os.write(2, b"a warning of a library\\n")
output.forward()
output.forward()
os.write(2, sys.argv[1].encode())
os.abort()
"""


def run_and_abort(*arguments):
  return subprocess.run(
    [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False
  )


def test_the_abort_becomes_a_sentence():
  result = run_and_abort(FATAL + "UNAVAILABLE: (stopped sending heartbeats):\n1\nThe tasks" + STACK)
  assert result.returncode == 1
  assert result.stdout == "on standard output\n"
  lines = result.stderr.splitlines()
  assert lines[:2] == ["on standard error", "a warning of a library"]
  assert lines[2].startswith("dss: process 1 of 2 no longer answers")
  assert len(lines) == 3


def test_a_process_that_is_already_exiting_keeps_its_exit_code():
  result = run_and_abort(
    FATAL + "UNAVAILABLE: Failed to send RPC to coordination service" + STACK, "2"
  )
  assert result.returncode == 2
  assert "dss:" not in result.stderr


def test_another_abort_is_printed_unchanged():
  result = run_and_abort("Check failed: something else" + STACK)
  assert result.returncode == -signal.SIGABRT
  assert "Check failed: something else" + STACK in result.stderr
  assert os.linesep + "dss:" not in result.stderr
