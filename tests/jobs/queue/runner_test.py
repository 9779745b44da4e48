"""The queue: device sets, quotas, cancelling, crashes, retention, with processes that count."""

import functools
import io
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from dss_jax.errors import UserError
from dss_jax.jobs.api.reviews import Reviews, SentEdit
from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.queue.runner import LOG, Runner, locked
from dss_jax.jobs.queue.worker_lock import FILE, holder, try_lock
from dss_jax.jobs.store import ENDED
from tests.jobs.workplace import annotate, pipeline

_SECONDS = 200


@pytest.fixture
def add(service):
  """Adds a job that counts; the labels say how."""

  def add(job_id, location="europe-west4", **labels):
    labels = {name: str(value) for name, value in labels.items()}
    body = pipeline(labels=labels)
    return service.create("pipelineJobs", "my-project", location, body, job_id=job_id).name

  return add


@pytest.fixture
def run(service):
  """Starts a queue over counting processes; ends it and them after the test."""
  runners = []

  def run(of=service):
    runner = Runner(of, "tests.jobs.counting_worker")
    runners.append((runner, of))
    runner.start()
    return runner

  yield run
  for runner, of in runners:
    runner.stop()
    for job in of.store.newest():
      process = holder(of.folder(job))
      if process is not None and is_held(of, job.name):
        os.killpg(process, signal.SIGKILL)


@pytest.fixture
def start_server():
  """Starts a queue as a process of its own; kills it after the test."""
  servers = []

  def start_server(root, *, wait=True):
    command = [sys.executable, "-m", "tests.jobs.counting_server", str(root)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    servers.append(server)
    if wait:
      assert server.stdout.readline() == "ready\n"
    return server

  yield start_server
  for server in servers:
    server.kill()
    server.wait()
    server.stdout.close()


def wait(condition):
  deadline = time.monotonic() + _SECONDS
  while not (found := condition()):
    assert time.monotonic() < deadline, "it did not happen in time"
    time.sleep(0.02)
  return found


def state(service, name):
  return service.get(name).state


def is_held(service, name):
  lock = try_lock(service.folder(service.get(name)) / FILE)
  if lock is not None:
    os.close(lock)
  return lock is None


def numbers(service, name):
  path = service.folder(service.get(name)) / "numbers"
  return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_jobs_wait_for_their_devices(service, add, run):
  names = [add(f"job-{number}", count=1000, pause=10) for number in range(4)]
  run()
  wait(lambda: [state(service, name) for name in names[:2]] == ["RUNNING"] * 2)
  assert {service.get(name).device_set for name in names[:2]} == {"a", "b"}
  assert [state(service, name) for name in names[2:]] == ["QUEUED"] * 2
  service.cancel(names[0])
  wait(lambda: state(service, names[2]) == "RUNNING")
  wait(lambda: not is_held(service, names[0]))
  assert service.get(names[2]).device_set == service.get(names[0]).device_set
  assert state(service, names[3]) == "QUEUED"


def test_a_job_ends_with_its_result(service, add, run):
  name = add("one", count=3)
  run()
  wait(lambda: state(service, name) == "SUCCEEDED")
  assert numbers(service, name) == [1, 2, 3]
  job = service.get(name)
  assert job.result["model"] == "count"
  assert job.create_time < job.start_time < job.end_time
  assert service.of_model("my-project", "count", 1) == job
  assert service.of_model("other-project", "count", 1) is None


def test_a_failure_has_its_sentence(service, add, run):
  name = add("one", count=3, fail=2)
  run()
  wait(lambda: state(service, name) == "FAILED")
  assert service.get(name).error == {"code": 3, "message": "this number is not liked"}
  assert "this number is not liked" in (service.folder(service.get(name)) / LOG).read_text()
  assert service.store.tasks(name)[2].state == "FAILED"


def test_a_job_that_always_dies_at_one_place_fails(service, add, run):
  name = add("one", count=9, crash=4)
  run()
  wait(lambda: state(service, name) == "FAILED")
  assert service.get(name).error["code"] == 13
  assert "without progress" in service.get(name).error["message"]
  assert (service.root / "starts").read_text().split() == ["one"] * 6
  assert numbers(service, name) == [1, 2, 3]


def test_cancelling(service, add, run):
  running, waiting, late = add("one", count=10**6, pause=10), add("two"), add("three")
  service.cancel(waiting)
  assert state(service, waiting) == "CANCELLED"
  assert service.get(waiting).error["code"] == 1
  assert {task.state for task in service.store.tasks(waiting)} == {"CANCELLED"}
  run()
  wait(lambda: len(numbers(service, running)) > 2)
  assert service.cancel(running).state == "CANCELLING"
  wait(lambda: state(service, running) == "CANCELLED")
  wait(lambda: not is_held(service, running))
  assert service.store.tasks(running)[2].state == "CANCELLED"
  wait(lambda: state(service, late) == "SUCCEEDED")
  assert service.cancel(late).state == "SUCCEEDED"
  assert not numbers(service, waiting)


def test_a_job_that_does_not_stop_is_killed(workplace, run):
  service = workplace.open(cancel_seconds=1)
  labels = {"count": "100000", "pause": "10", "deaf": "yes"}
  name = service.create("pipelineJobs", "my-project", "us-east1", pipeline(labels=labels)).name
  run(service)
  wait(lambda: numbers(service, name))
  service.cancel(name)
  wait(lambda: state(service, name) == "CANCELLED")
  wait(lambda: not is_held(service, name))


def test_a_job_that_waits_for_people_has_no_process_and_no_devices(workplace, start_server):
  """It outlives servers, is tidied only when it has ended, and goes on when it is approved."""
  service = workplace.open(device_sets=workplace.settings["device_sets"][:1], retention_days=1)
  labels = {"review": "yes", "count": "3"}
  create = functools.partial(service.create, "pipelineJobs", "my-project", "us-east1")
  job = create(pipeline(labels=labels), job_id="reviewed")
  annotate(service, job)
  other = create(pipeline(labels={"count": "2"}), job_id="other")
  server = start_server(service.root)
  # On the one device set.
  wait(lambda: state(service, other.name) == "SUCCEEDED")
  assert state(service, job.name) == "PAUSED"
  assert not is_held(service, job.name)
  server.kill()
  server.wait()
  start_server(service.root)
  reviews = Reviews(service)
  reviews.edit(job.name, SentEdit(row=1, etag="0", rationale="Mine."), "ann")
  assert reviews.approve(job.name, "ann").state == "QUEUED"
  wait(lambda: state(service, job.name) == "SUCCEEDED")
  assert numbers(service, job.name) == [1, 2, 3]
  assert service.get(job.name).restarts == 0
  assert (service.root / "starts").read_text().split() == ["reviewed", "other", "reviewed"]


def test_a_paused_job_is_cancelled_at_once(service, add):
  name = add("one", review="yes")
  annotate(service, service.get(name))
  service.store.change(name, ("QUEUED",), state="PAUSED")
  with pytest.raises(ApiError, match="cancel it before you delete it"):
    service.delete([name])
  assert service.cancel(name).state == "CANCELLED"
  service.delete([name])
  assert not list((service.root / "jobs").glob("one-*"))


def test_quotas_of_region_and_accelerator(workplace, run):
  service = workplace.open(quotas=[{"region": "us-east1", "accelerator": "TPU", "jobs": 1}])
  labels = {"count": "100000", "pause": "10"}
  names = [
    service.create(
      "pipelineJobs", "my-project", location, pipeline(labels=labels), job_id=f"job-{number}"
    ).name
    for number, location in enumerate(("us-east1", "us-east1", "us-west1"))
  ]
  run(service)
  wait(lambda: [state(service, name) for name in names[::2]] == ["RUNNING", "RUNNING"])
  assert state(service, names[1]) == "QUEUED"


def test_an_account_selects_an_environment(workplace, run):
  accounts = {"me@my-project": {"environment": {"DSS_TEST_ACCOUNT": "x"}}}
  service = workplace.open(service_accounts=accounts)
  body = pipeline(serviceAccount="me@my-project", labels={"count": "1000", "pause": "10"})
  name = service.create("pipelineJobs", "my-project", "us-east1", body).name
  run(service)
  process = wait(
    lambda: state(service, name) == "RUNNING" and holder(service.folder(service.get(name)))
  )
  environment = pathlib.Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
  assert b"DSS_TEST_ACCOUNT=x" in environment


def test_the_next_server_watches_what_the_last_one_started(service, add, run):
  name = add("one", count=10**6, pause=10)
  first = run()
  wait(lambda: len(numbers(service, name)) > 2)
  process = holder(service.folder(service.get(name)))
  first.stop()
  second = run()
  before = len(numbers(service, name))
  wait(lambda: len(numbers(service, name)) > before + 5)
  assert holder(service.folder(service.get(name))) == process
  os.kill(process, signal.SIGKILL)
  wait(lambda: holder(service.folder(service.get(name))) not in (process, None))
  before = len(numbers(service, name))
  wait(lambda: len(numbers(service, name)) > before)
  second.stop()
  assert (service.root / "starts").read_text().split() == ["one"] * 2
  found = numbers(service, name)
  assert found == list(range(1, len(found) + 1))


def test_one_server_a_root(service):
  with locked(service.root), pytest.raises(UserError, match="another server"), locked(service.root):
    pass
  with locked(service.root):
    pass


def test_old_jobs_and_lost_folders_are_deleted(workplace, run):
  service = workplace.open(retention_days=30)
  kept, old = (
    service.create("pipelineJobs", "my-project", "us-east1", pipeline(), job_id=job_id)
    for job_id in ("kept", "old")
  )
  runner = run(service)
  wait(lambda: {job.state for job in service.store.newest()} == {"SUCCEEDED"})
  runner.stop()
  with service.store._writing() as database:
    database.execute("update jobs set end_time = '2020-01-01T00:00:00Z' where job_id = 'old'")
  lost = service.root / "jobs" / "lost-00000000"
  lost.mkdir()
  upload = service.uploads.add("my-project", "x.jsonl", io.BytesIO(b"x"), "me")
  card = service.root / "uploads" / "my-project" / upload.id / "upload.json"
  card.write_text(card.read_text().replace(upload.create_time, "2020-01-01T00:00:00Z"))
  runner.tidy()
  assert service.uploads.list("my-project") == []
  assert [job.name for job in service.store.newest()] == [kept.name]
  assert service.folder(kept).exists()
  assert not service.folder(old).exists()
  assert not lost.exists()


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_lose_nothing_and_run_nothing_twice(workplace, start_server, kills):
  """The server and its jobs are killed so often each, at random moments, and all jobs end."""
  dice = random.Random(kills)
  service = workplace.open(restarts=1000)
  count = 150 * kills
  names = [
    service.create(
      "pipelineJobs", "my-project", "us-east1",
      pipeline(labels={"count": str(count), "pause": "10"}), job_id=f"job-{number}",
    ).name
    for number in range(4)
  ]  # fmt: skip
  server = start_server(service.root)
  killed = 0
  for kill in range(2 * kills):
    time.sleep(dice.uniform(0.0, 0.5))
    if kill % 2:
      wait(lambda: kill_one(service.store.in_states(("PENDING", "RUNNING")), service, dice))
      killed += 1
    else:
      server.kill()
      server.wait()
      server = start_server(service.root, wait=dice.random() < 0.7)
  wait(lambda: all(job.state in ENDED for job in service.store.newest()))
  assert killed == kills
  assert not (service.root / "two-at-once").exists()
  starts = (service.root / "starts").read_text().split()
  assert len(names) < len(starts) <= len(names) + kills
  for name in names:
    job = service.get(name)
    assert (job.state, job.error) == ("SUCCEEDED", None)
    assert numbers(service, name) == list(range(1, count + 1))
    history = [each["state"] for each in service.store.tasks(name)[2].history]
    assert history == ["PENDING", "RUNNING", "SUCCEEDED"]


def kill_one(jobs, service, dice):
  """Kills the process of one of the jobs; returns that job, None if none of them has one."""
  # The lock is looked at first: what the file says may be of the process before.
  held = [job for job in jobs if is_held(service, job.name)]
  running = [(job, process) for job in held if (process := holder(service.folder(job)))]
  if not running:
    return None
  job, process = dice.choice(running)
  try:
    os.kill(process, signal.SIGKILL)
  except ProcessLookupError:
    # It has just ended.
    return None
  return job
