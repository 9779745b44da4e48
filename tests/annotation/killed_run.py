"""Runs `annotate` in children that are killed: `killed_run.py DATA OUTPUT URL`.

Reads a number of seconds per line. Each line starts a child, which is killed with SIGKILL after
that time. Prints "killed", or "ended" if the child ended before.
"""

import os
import signal
import sys
import time

from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.prompts import load_prompt
from dss_jax.annotation.run import annotate
from dss_jax.data.records import read_rows
from dss_jax.teachers.http import HttpTeacher


def main(data, output, url):
  prompt = load_prompt("svamp")
  for line in sys.stdin:
    child = os.fork()
    if not child:
      teacher = HttpTeacher("served", url=url)
      annotate(lambda: read_rows(data), output, teacher, prompt, AnnotationConfig())
      os._exit(0)
    end = time.monotonic() + float(line)
    while time.monotonic() < end and not os.waitpid(child, os.WNOHANG)[0]:
      time.sleep(0.005)
    try:
      os.kill(child, signal.SIGKILL)
      os.waitpid(child, 0)
      print("killed", flush=True)
    except (ProcessLookupError, ChildProcessError):
      print("ended", flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
