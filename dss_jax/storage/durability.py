"""A call whenever files of this process are whole on their file system.

What writes files says so here, and at most one listener hears it: a job whose working folder is in
memory encrypts what is new onto a disk.
"""

import contextlib
from collections.abc import Callable, Iterator

Listener = Callable[[], None]
_listeners: list[Listener] = []


@contextlib.contextmanager
def whenever_durable(listener: Listener) -> Iterator[None]:
  """Has the listener called, in whichever thread writes, until the body ends."""
  assert not _listeners, "there is a listener already"
  _listeners.append(listener)
  try:
    yield
  finally:
    _listeners.remove(listener)


def is_heard() -> bool:
  """Returns whether there is a listener."""
  return bool(_listeners)


def durable() -> None:
  """Says that files are whole; what the listener raises passes through."""
  for listener in _listeners:
    listener()
