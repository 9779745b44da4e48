"""A server's queue without its API: `python -m tests.jobs.counting_server ROOT`."""

import sys
import time

from dss_jax.jobs.queue.runner import Runner, locked
from dss_jax.jobs.service import open_service

if __name__ == "__main__":
  service = open_service(sys.argv[1])
  with locked(service.root):
    runner = Runner(service, "tests.jobs.counting_worker")
    runner.start()
    print("ready", flush=True)
    while True:
      time.sleep(1)
