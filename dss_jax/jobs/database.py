"""Connections to the job server's SQLite files, and transactions in them."""

import contextlib
import pathlib
import sqlite3
from collections.abc import Iterator


@contextlib.contextmanager
def connected(path: pathlib.Path) -> Iterator[sqlite3.Connection]:
  """Gives a connection without a transaction, and closes it."""
  connection = sqlite3.connect(path, timeout=60, isolation_level=None)
  with contextlib.closing(connection):
    yield connection


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
  """Lets no other process change anything, in one transaction, which an exception undoes."""
  # Immediate: two writers that had both read could not both go on.
  database.execute("begin immediate")
  try:
    yield database
  except BaseException:
    database.execute("rollback")
    raise
  database.execute("commit")
