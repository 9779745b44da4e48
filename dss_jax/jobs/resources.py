"""Resources of the API besides jobs (operations, endpoints, batch predictions), as JSON in SQLite.

Any number of processes may read and write; every change is one transaction. Imports nothing heavy.
"""

import contextlib
import json
import pathlib
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

from dss_jax.jobs.api_error import ApiError, not_found
from dss_jax.jobs.database import connected, transaction
from dss_jax.jobs.names import Name

FILE = "resources.sqlite"
_SCHEMA = """
pragma journal_mode = wal;
create table if not exists resources (
  name text primary key, kind text not null, project text not null, location text not null,
  value text not null
);
create index if not exists resources_of_parent on resources (kind, project, location);
"""


class Resources:
  """The resources under a root folder."""

  def __init__(self, root: pathlib.Path):
    """Opens them; the file is made if it is not there."""
    self._path = root / FILE
    with connected(self._path) as database:
      database.executescript(_SCHEMA)

  def add(self, name: Name, value: dict[str, Any]) -> dict[str, Any]:
    """Adds a resource and returns it, with its name; raises ApiError ALREADY_EXISTS."""
    complete = {"name": str(name), **value}
    row = (str(name), name.kind, name.project, name.location, json.dumps(complete))
    with self.locked() as database:
      try:
        database.execute("insert into resources values (?, ?, ?, ?, ?)", row)
      except sqlite3.IntegrityError:
        raise ApiError("ALREADY_EXISTS", f"{name}: exists already; give another id") from None
    return complete

  def get(self, name: Name) -> dict[str, Any]:
    """Returns a resource; raises ApiError NOT_FOUND."""
    with connected(self._path) as database:
      return _read(database, name)

  def list(
    self, kind: str, project: str | None = None, location: str = "-"
  ) -> list[dict[str, Any]]:
    """Returns the resources of a kind; None means all projects, "-" all locations."""
    with connected(self._path) as database:
      rows = database.execute(
        "select value from resources where kind = ? and (project = ? or ? is null)"
        " and (location = ? or ? = '-')",
        (kind, project, project, location, location),
      ).fetchall()
    return [json.loads(row[0]) for row in rows]

  def change(self, name: Name, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Changes a resource in one transaction and returns it.

    Args:
      change: changes the JSON that it is given; what it raises leaves the resource as it was.
    """
    with self.locked() as database:
      value = _read(database, name)
      change(value)
      database.execute(
        "update resources set value = ? where name = ?", (json.dumps(value), str(name))
      )
    return value

  def delete(
    self, name: Name, check: Callable[[dict[str, Any]], None] = lambda value: None
  ) -> dict[str, Any]:
    """Deletes a resource and returns what it was.

    Args:
      check: raises if the resource must stay.
    """
    with self.locked() as database:
      value = _read(database, name)
      check(value)
      database.execute("delete from resources where name = ?", (str(name),))
    return value

  @contextlib.contextmanager
  def locked(self) -> Iterator[sqlite3.Connection]:
    """Lets no other process change anything, in one transaction, which an exception undoes."""
    with connected(self._path) as database, transaction(database):
      yield database


def _read(database: sqlite3.Connection, name: Name) -> dict[str, Any]:
  row = database.execute("select value from resources where name = ?", (str(name),)).fetchone()
  if row is None:
    raise not_found(str(name))
  return json.loads(row[0])
