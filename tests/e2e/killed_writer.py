"""Registers two students in turn, in children that are killed: `killed_writer.py ROOT ONE OTHER`.

Reads a number of seconds per line. Each line starts a child, which is killed with SIGKILL that
long after its first registration. Prints the number of versions that it registered. A child moves
three aliases to each new version, in one step, and deletes the versions before it.
"""

import functools
import itertools
import os
import signal
import sys
import time

from dss_jax.student.registration import register_student
from dss_jax.student.registry import Registry


def write(root, sources, on_registered):
  registry = Registry(root)
  for source in itertools.cycle(sources):
    version = register_student(source, "mine", root)
    on_registered()
    registry.merge_aliases(version.reference, ["default", "stable", "prod"])
    for other in registry.versions("mine"):
      if other.number != version.number:
        registry.delete(other.reference)


def last_number(root):
  return Registry(root).versions("mine")[-1].number


def main(root, *sources):
  for line in sys.stdin:
    before = last_number(root)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
      try:
        write(root, sources, functools.partial(os.write, writing, b"."))
      finally:
        os._exit(1)
    os.close(writing)
    os.read(reading, 1)
    time.sleep(float(line))
    is_alive = os.waitpid(child, os.WNOHANG) == (0, 0)
    assert is_alive, "the writer ended by itself"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    print(last_number(root) - before, flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
