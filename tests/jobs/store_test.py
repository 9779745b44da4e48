"""The store: one transaction a change, each job ends once."""

import concurrent.futures
import dataclasses

import pytest

from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.store import STARTED, TASKS, Job, Store

JOB = Job(
  name="projects/p/locations/l/pipelineJobs/one",
  kind="pipelineJobs",
  project="p",
  location="l",
  job_id="one",
  display_name="One",
  user=None,
  accelerator="TPU",
  account=None,
  state="QUEUED",
  create_time="2026-01-01T00:00:00.000000Z",
  start_time=None,
  end_time=None,
  update_time="2026-01-01T00:00:00.000000Z",
  request={"displayName": "One"},
  config="",
  plan={"devices": 1, "review_rationales": True},
  folder="one-1",
)


def job(name, **changes):
  full = f"projects/p/locations/{changes.get('location', 'l')}/pipelineJobs/{name}"
  return dataclasses.replace(JOB, name=full, job_id=name, folder=f"{name}-1", **changes)


@pytest.fixture
def store(tmp_path):
  return Store(tmp_path)


def test_what_is_stored_is_read_again(store, tmp_path):
  created = store.create(JOB)
  assert created == dataclasses.replace(JOB, number=1)
  assert Store(tmp_path).get(JOB.name) == created
  assert [task.name for task in store.tasks(JOB.name)] == list(TASKS)
  assert {task.state for task in store.tasks(JOB.name)} == {"PENDING"}
  assert store.get("projects/p/locations/l/pipelineJobs/two") is None
  store.create(job("plain", plan={"devices": 1}))
  assert {*TASKS} - {task.name for task in store.tasks(job("plain").name)} == {"review"}


def test_a_name_is_taken_once(store):
  store.create(JOB)
  with pytest.raises(ApiError, match="exists already") as error:
    store.create(dataclasses.replace(JOB, folder="another"))
  assert error.value.kind == "ALREADY_EXISTS"
  assert len(store.newest()) == 1
  assert len(store.tasks(JOB.name)) == len(TASKS)


def test_lists(store):
  for name, location in (("one", "l"), ("two", "m"), ("three", "l")):
    store.create(job(name, location=location))
  store.create(dataclasses.replace(job("other"), kind="tuningJobs"))
  ids = lambda jobs: [each.job_id for each in jobs]  # noqa: E731
  assert ids(store.of_parent("pipelineJobs", "p", "l")) == ["three", "one"]
  assert ids(store.of_parent("pipelineJobs", "p", "-")) == ["three", "two", "one"]
  assert ids(store.of_parent("pipelineJobs", "q", "-")) == []
  assert ids(store.newest()) == ["other", "three", "two", "one"]
  assert ids(store.in_states(("QUEUED", "RUNNING"))) == ["one", "two", "three", "other"]


def test_a_change_needs_the_state_that_it_expects(store):
  store.create(JOB)
  assert store.change(JOB.name, ("QUEUED",), state="PENDING", device_set="a")
  assert not store.change(JOB.name, ("QUEUED",), state="PENDING", device_set="b")
  assert store.get(JOB.name).device_set == "a"
  assert not store.change("projects/p/locations/l/pipelineJobs/two", ("QUEUED",), state="PENDING")


@pytest.mark.parametrize(
  ("state", "expected"),
  [
    ("SUCCEEDED", ["SUCCEEDED", "SUCCEEDED"]),
    ("FAILED", ["FAILED", "NOT_TRIGGERED"]),
    ("CANCELLED", ["CANCELLED", "CANCELLED"]),
  ],
)
def test_tasks_end_with_their_job(store, state, expected):
  store.create(JOB)
  store.change(JOB.name, ("QUEUED",), state="RUNNING")
  store.change_task(JOB.name, "validate", "RUNNING")
  store.change_task(JOB.name, "validate", "SUCCEEDED", metadata={"rows": 1})
  store.change_task(JOB.name, "annotate", "RUNNING")
  if state == "SUCCEEDED":
    for task in TASKS[1:]:
      store.change_task(JOB.name, task, "SUCCEEDED")
  error = None if state == "SUCCEEDED" else {"code": 3, "message": "no"}
  assert store.change(JOB.name, STARTED, state=state, error=error)
  ended = store.get(JOB.name)
  assert (ended.state, ended.error, ended.has_ended) == (state, error, True)
  assert ended.end_time == ended.update_time
  validate, annotate, tune, *_ = store.tasks(JOB.name)
  assert [annotate.state, tune.state] == expected
  assert (validate.state, validate.metadata) == ("SUCCEEDED", {"rows": 1})
  assert [each["state"] for each in validate.history] == ["PENDING", "RUNNING", "SUCCEEDED"]
  assert validate.start_time <= validate.end_time
  # Nothing ends a second time.
  assert not store.change(JOB.name, STARTED, state="FAILED")


def test_the_same_state_again_is_no_change(store):
  store.create(JOB)
  store.change_task(JOB.name, "tune", "RUNNING")
  before = store.tasks(JOB.name)
  store.change_task(JOB.name, "tune", "RUNNING")
  assert store.tasks(JOB.name) == before


def test_of_many_that_end_a_job_one_does(store, tmp_path):
  store.create(JOB)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    states = ["SUCCEEDED", "FAILED", "CANCELLED"] * 8
    done = list(pool.map(lambda state: Store(tmp_path).change(JOB.name, ("QUEUED",), state=state),
                         states))  # fmt: skip
  assert sum(done) == 1
  assert store.get(JOB.name).state == states[done.index(True)]


def test_all_are_deleted_or_none(store):
  for name in ("one", "two"):
    store.create(job(name))
  one, two = job("one").name, job("two").name
  store.change(one, ("QUEUED",), state="CANCELLED")
  with pytest.raises(ApiError, match="is QUEUED; cancel it") as error:
    store.delete([one, two])
  assert error.value.kind == "FAILED_PRECONDITION"
  with pytest.raises(ApiError, match="does not exist"):
    store.delete([one, job("three").name])
  assert len(store.newest()) == 2
  assert store.folders() == {"one-1", "two-1"}
  store.delete([one])
  assert [each.name for each in store.newest()] == [two]
  assert store.tasks(one) == []
