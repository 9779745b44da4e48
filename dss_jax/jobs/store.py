"""The jobs of a server in one SQLite file: every change is one transaction, safe under SIGKILL.

Any number of processes may read and write. Imports nothing heavy.
"""

import contextlib
import dataclasses
import datetime
import json
import pathlib
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from dss_jax.errors import UserError
from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.database import connected, transaction

FILE = "jobs.sqlite"
Kind = Literal["pipelineJobs", "tuningJobs"]
# As the API writes them, without the prefix PIPELINE_STATE_ or JOB_STATE_.
State = Literal[
  "QUEUED", "PENDING", "RUNNING", "PAUSED", "SUCCEEDED", "FAILED", "CANCELLING", "CANCELLED"
]  # fmt: skip
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
# States of jobs that have a device set and, unless it died, a process.
STARTED = ("PENDING", "RUNNING", "CANCELLING")
# States of jobs that have neither, and wait: for devices, or for a person.
WAITING = ("QUEUED", "PAUSED")
CANCELLED_ERROR = {"code": 1, "message": "the job was cancelled; its checkpoints are kept"}
REVIEW = "review"
TASKS = ("validate", "annotate", REVIEW, "tune", "evaluate", "upload-model")

_SCHEMA = """
create table if not exists jobs (
  name text primary key, kind text not null, project text not null, location text not null,
  job_id text not null, display_name text not null, user text, accelerator text not null,
  account text, state text not null, create_time text not null, start_time text, end_time text,
  update_time text not null, request text not null, config text not null, plan text not null,
  folder text not null unique, device_set text,
  restarts integer not null default 0, progress text, error text, result text,
  number integer not null
);
create index if not exists jobs_of_parent on jobs (kind, project, location);
create index if not exists jobs_by_state on jobs (state);
create table if not exists tasks (
  job text not null references jobs (name) on delete cascade, number integer not null,
  task text not null, state text not null, create_time text not null, start_time text,
  end_time text, error text, metadata text not null, history text not null,
  primary key (job, task)
);
"""
_JSON = ("request", "plan", "error", "result")


@dataclasses.dataclass(frozen=True)
class Job:
  """A job as it is stored.

  Attributes:
    name: projects/P/locations/L/KIND/ID.
    user: who created it, if the server knows its users.
    accelerator: the type that was asked for.
    account: the request's serviceAccount.
    create_time, start_time, end_time, update_time: RFC 3339, in UTC.
    request: the body that it was created with, in camelCase.
    config: the run's RunConfig as gin text.
    plan: what the run's configuration does not say (see service.Plan).
    folder: the name of its folder, which no other job ever has.
    device_set: the devices that it runs on.
    restarts: of its process since it last made progress; `progress` says how far it was.
    error: {"code": of gRPC, "message"} of a job that failed or was cancelled.
    result: what it made: {"model", "version", "endpoint"?, ...}.
    number: the order of creation.
  """

  name: str
  kind: Kind
  project: str
  location: str
  job_id: str
  display_name: str
  user: str | None
  accelerator: str
  account: str | None
  state: State
  create_time: str
  start_time: str | None
  end_time: str | None
  update_time: str
  request: dict[str, Any]
  config: str
  plan: dict[str, Any]
  folder: str
  device_set: str | None = None
  restarts: int = 0
  progress: str | None = None
  error: dict[str, Any] | None = None
  result: dict[str, Any] | None = None
  number: int = 0

  @property
  def has_ended(self) -> bool:
    return self.state in ENDED


@dataclasses.dataclass(frozen=True)
class Task:
  """A part of a job.

  Attributes:
    state: PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLED, SKIPPED or NOT_TRIGGERED.
    metadata: of its execution, such as {"output:model_resource_name": ...}.
    history: every state that it had, each {"updateTime", "state"}.
  """

  name: str
  state: str
  create_time: str
  start_time: str | None
  end_time: str | None
  error: dict[str, Any] | None
  metadata: dict[str, Any]
  history: list[dict[str, Any]]


def now() -> str:
  """Returns the time as the API writes it."""
  moment = datetime.datetime.now(datetime.UTC)
  return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class Store:
  """The jobs under a root folder."""

  def __init__(self, root: pathlib.Path):
    """Opens the store, and makes it if it is not there; raises UserError if it cannot be used."""
    self._path = root / FILE
    try:
      with self._connection() as database:
        database.executescript("pragma journal_mode = wal;" + _SCHEMA)
    except sqlite3.Error as error:
      raise UserError(
        f"--root {root}: {FILE} cannot be used ({error}); give another folder, or restore the file"
      ) from None

  def create(self, job: Job) -> Job:
    """Adds a job and its tasks; raises ApiError ALREADY_EXISTS if the name is taken."""
    values = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    for name in _JSON:
      values[name] = None if values[name] is None else json.dumps(values[name])
    columns = [name for name in values if name != "number"]
    with self._writing() as database:
      try:
        database.execute(
          f"insert into jobs ({', '.join(columns)}, number) values ("
          f"{', '.join(f':{name}' for name in columns)},"
          " (select coalesce(max(number), 0) + 1 from jobs))",
          values,
        )
      except sqlite3.IntegrityError:
        raise ApiError(
          "ALREADY_EXISTS", f"{job.name}: exists already; give another id, or none"
        ) from None
      for number, task in enumerate(_tasks_of(job)):
        history = json.dumps([{"updateTime": job.create_time, "state": "PENDING"}])
        database.execute(
          "insert into tasks (job, number, task, state, create_time, metadata, history)"
          " values (?, ?, ?, 'PENDING', ?, '{}', ?)",
          (job.name, number, task, job.create_time, history),
        )
    created = self.get(job.name)
    assert created is not None
    return created

  def get(self, name: str) -> Job | None:
    """Returns a job; None if there is none."""
    with self._connection() as database:
      row = database.execute("select * from jobs where name = ?", (name,)).fetchone()
    return None if row is None else _job(row)

  def of_parent(self, kind: Kind, project: str, location: str) -> list[Job]:
    """Returns the jobs of a parent, newest first; location "-" means all locations."""
    with self._connection() as database:
      rows = database.execute(
        "select * from jobs where kind = ? and project = ? and (location = ? or ? = '-')"
        " order by number desc",
        (kind, project, location, location),
      ).fetchall()
    return [_job(row) for row in rows]

  def newest(self) -> list[Job]:
    """Returns all jobs, newest first."""
    with self._connection() as database:
      rows = database.execute("select * from jobs order by number desc").fetchall()
    return [_job(row) for row in rows]

  def in_states(self, states: Collection[str]) -> list[Job]:
    """Returns the jobs in some states, oldest first."""
    marks = ", ".join("?" * len(states))
    with self._connection() as database:
      rows = database.execute(
        f"select * from jobs where state in ({marks}) order by number", tuple(states)
      ).fetchall()
    return [_job(row) for row in rows]

  def folders(self) -> set[str]:
    """Returns the names of all jobs' folders."""
    with self._connection() as database:
      return {row["folder"] for row in database.execute("select folder from jobs")}

  def tasks(self, name: str) -> list[Task]:
    """Returns the tasks of a job, in their order."""
    with self._connection() as database:
      rows = database.execute(
        "select * from tasks where job = ? order by number", (name,)
      ).fetchall()
    return [_task(row) for row in rows]

  def change(self, name: str, states: Collection[str], **values: Any) -> bool:
    """Changes a job if it is in one of the states; returns whether it was.

    A job that ends gets its end_time, and its unfinished tasks end with it.
    """
    moment = now()
    values = {**values, "update_time": moment}
    state = values.get("state")
    if state in ENDED:
      values["end_time"] = moment
    for key in _JSON:
      if values.get(key) is not None:
        values[key] = json.dumps(values[key])
    sets = ", ".join(f"{key} = :{key}" for key in values)
    marks = ", ".join(f":state_{number}" for number in range(len(states)))
    names = {f"state_{number}": each for number, each in enumerate(states)}
    with self._writing() as database:
      changed = database.execute(
        f"update jobs set {sets} where name = :name and state in ({marks})",
        {**values, **names, "name": name},
      ).rowcount
      if changed and state in ENDED:
        _end_tasks(database, name, str(state), moment)
    return bool(changed)

  def change_task(
    self,
    name: str,
    task: str,
    state: str,
    *,
    error: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
  ) -> None:
    """Changes the state of a task; does nothing if the task is in that state already."""
    with self._writing() as database:
      row = database.execute(
        "select * from tasks where job = ? and task = ?", (name, task)
      ).fetchone()
      if row is not None and row["state"] != state:
        _set_task(database, row, state, now(), error, metadata)

  def delete(self, names: Sequence[str]) -> None:
    """Deletes ended jobs, all or none.

    Raises ApiError NOT_FOUND, or FAILED_PRECONDITION for one that has not ended.
    """
    with self._writing() as database:
      for name in names:
        row = database.execute("select state from jobs where name = ?", (name,)).fetchone()
        if row is None:
          raise ApiError("NOT_FOUND", f"{name}: does not exist here; list what does")
        if row["state"] not in ENDED:
          raise ApiError(
            "FAILED_PRECONDITION", f"{name}: is {row['state']}; cancel it before you delete it"
          )
        database.execute("delete from jobs where name = ?", (name,))

  @contextlib.contextmanager
  def _connection(self) -> Iterator[sqlite3.Connection]:
    with connected(self._path) as database:
      database.row_factory = sqlite3.Row
      database.execute("pragma foreign_keys = on")
      yield database

  @contextlib.contextmanager
  def _writing(self) -> Iterator[sqlite3.Connection]:
    """Gives a connection within one transaction, which an exception undoes."""
    with self._connection() as database, transaction(database):
      yield database


def _tasks_of(job: Job) -> list[str]:
  """Returns the names of a job's tasks; there is a review only where one was asked for."""
  return [task for task in TASKS if task != REVIEW or job.plan.get("review_rationales")]


def _end_tasks(database: sqlite3.Connection, job: str, state: str, moment: str) -> None:
  """Ends the tasks of a job that has ended: what ran ends as the job did, the rest never began."""
  rows = database.execute("select * from tasks where job = ?", (job,)).fetchall()
  for row in rows:
    if row["state"] == "RUNNING":
      _set_task(database, row, state, moment)
    elif row["state"] == "PENDING":
      _set_task(database, row, "CANCELLED" if state == "CANCELLED" else "NOT_TRIGGERED", moment)


def _set_task(
  database: sqlite3.Connection,
  row: sqlite3.Row,
  state: str,
  moment: str,
  error: Mapping[str, Any] | None = None,
  metadata: Mapping[str, Any] | None = None,
) -> None:
  history = [*json.loads(row["history"]), {"updateTime": moment, "state": state}]
  is_end = state not in ("PENDING", "RUNNING")
  database.execute(
    "update tasks set state = ?, start_time = ?, end_time = ?, error = ?, metadata = ?,"
    " history = ? where job = ? and task = ?",
    (
      state,
      row["start_time"] or (moment if state == "RUNNING" else None),
      moment if is_end else None,
      None if error is None else json.dumps(error),
      json.dumps({**json.loads(row["metadata"]), **(metadata or {})}),
      json.dumps(history),
      row["job"],
      row["task"],
    ),
  )


def _job(row: sqlite3.Row) -> Job:
  values = dict(row)
  for name in _JSON:
    values[name] = None if values[name] is None else json.loads(values[name])
  return Job(**values)


def _task(row: sqlite3.Row) -> Task:
  return Task(
    name=row["task"],
    state=row["state"],
    create_time=row["create_time"],
    start_time=row["start_time"],
    end_time=row["end_time"],
    error=None if row["error"] is None else json.loads(row["error"]),
    metadata=json.loads(row["metadata"]),
    history=json.loads(row["history"]),
  )
