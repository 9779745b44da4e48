"""The students that a server has loaded: the ones last asked for, at most so many."""

import asyncio
from collections.abc import Callable

from dss_jax.progress import say
from dss_jax.serving.models import Models, Student
from dss_jax.student.registry import Version


def key_of(project: str, reference: str) -> str:
  """Returns the name under which NAME@NUMBER of a project is in the pool."""
  return f"{project}/{reference}"


class StudentPool:
  """Loads students when they are first asked for.

  Attributes:
    models: those that are loaded, by key_of.
  """

  def __init__(
    self, load: Callable[[Version], Student], *, max_students: int = 4, max_waiting: int = 256
  ):
    """Begins empty.

    Args:
      load: loads a student; called in a thread.
      max_students: the one that was not asked for the longest makes room for another.
      max_waiting: answers that may wait for a slot of a student.
    """
    self.models = Models(max_waiting)
    self._load = load
    self._max_students = max_students
    self._keys: dict[str, None] = {}
    self._loading = asyncio.Lock()

  async def ready(self, project: str, version: Version) -> str:
    """Returns the key of a version once its student is loaded; raises UserError if it cannot be."""
    key = key_of(project, version.reference)
    # One at a time: two that load need the memory of both.
    if key not in self._keys:
      async with self._loading:
        if key not in self._keys:
          await self._add(key, version)
    # The newest is the last.
    self._keys.pop(key, None)
    self._keys[key] = None
    return key

  def drop(self, key: str) -> None:
    """Unloads a student, if it is loaded; it completes its answers."""
    self._keys.pop(key, None)
    self.models.remove(key)

  async def _add(self, key: str, version: Version) -> None:
    while len(self._keys) >= self._max_students:
      self.drop(next(iter(self._keys)))
    student = await asyncio.to_thread(self._load, version)
    self.models.put(key, str(version.number), student)
    self._keys[key] = None
    say(f"loaded {key}")
