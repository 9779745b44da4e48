"""A job's process that counts instead of training: `python -m tests.jobs.counting_worker`.

The work is in the request's labels: it counts to `count`, a number in `pause` thousandths of a
second, and keeps the numbers in a file as training keeps checkpoints. With `crash` the process
ends at that number, every time, before it keeps it; with `deaf` it does not hear SIGTERM. With
`review` it first waits for an approval of its annotated rows.
"""

import fcntl
import os
import signal
import sys
import time

from dss_jax.annotation.review import approved_review
from dss_jax.jobs.queue.worker import JobFailed, JobPaused, main


class Count:
  """The work of a job."""

  def __init__(self, root, store, job):
    self._root, self._store, self._job = root, store, job
    self._labels = {"count": "1", "pause": "0", **job.request.get("labels", {})}

  def run(self):
    if "deaf" in self._labels:
      signal.signal(signal.SIGTERM, signal.SIG_IGN)
    folder = self._root / "jobs" / self._job.folder
    numbers = folder / "numbers"
    with (folder / "alone").open("a") as alone, (self._root / "starts").open("a") as starts:
      try:
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        (self._root / "two-at-once").touch()
        raise
      starts.write(f"{self._job.job_id}\n")
      starts.flush()
      if "review" in self._labels and not approved_review(folder / "model" / "annotated.jsonl"):
        raise JobPaused
      self._store.change_task(self._job.name, "tune", "RUNNING")
      reached = len(numbers.read_text().split()) if numbers.exists() else 0
      for number in range(reached + 1, int(self._labels["count"]) + 1):
        time.sleep(int(self._labels["pause"]) / 1000)
        if str(number) == self._labels.get("crash"):
          os._exit(3)
        if str(number) == self._labels.get("fail"):
          raise JobFailed("INVALID_ARGUMENT", "this number is not liked")
        with numbers.open("a") as file:
          file.write(f"{number}\n")
      self._store.change_task(self._job.name, "tune", "SUCCEEDED")
    made = {"model": "count", "version": 1, "location": "europe-west4", "student": "t5-small"}
    return {**made, "endpoint": "projects/my-project/locations/europe-west4/endpoints/1"}


if __name__ == "__main__":
  main(*sys.argv[1:], work=Count)
