"""The students that a server has loaded: the ones last asked for, at most so many."""

import asyncio
from collections.abc import Callable

from dss_jax.errors import UserError
from dss_jax.jobs.encryption.private_jobs import PrivateJobs
from dss_jax.progress import say
from dss_jax.serving.models import Models, Student
from dss_jax.student.registry import Version

Load = Callable[[Version], Student]
_SLOTS = 16
# About the length of a question; longer inputs compile their programs when they come.
_WARM_UP = "word " * 64


def key_of(project: str, version: Version) -> str:
  """Returns the name under which a version is in the pool.

  It has the time of the registration: the versions of a model that was deleted and registered
  again have the same numbers.
  """
  return f"{project}/{version.reference}/{version.record.get('created')}"


class StudentPool:
  """Loads students when they are first asked for.

  Attributes:
    models: those that are loaded, by key_of.
  """

  def __init__(
    self,
    load: Load,
    *,
    max_students: int,
    max_waiting: int = 256,
    check: Callable[[str, Version], None] = lambda project, version: None,
  ):
    """Begins empty.

    Args:
      load: loads a student; called in a thread.
      max_students: the one that was not asked for the longest makes room for another.
      max_waiting: answers that may wait for a slot of a student.
      check: raises UserError for a student that may not be asked any more; it is unloaded.
    """
    self.models = Models(max_waiting)
    self._load = load
    self._check = check
    self._max_students = max_students
    self._keys: dict[str, None] = {}
    self._loading = asyncio.Lock()

  async def ready(self, project: str, version: Version) -> str:
    """Returns the key of a version once its student is loaded; raises UserError if it cannot be."""
    key = key_of(project, version)
    try:
      self._check(project, version)
    except UserError:
      self.drop(project, version.reference)
      raise
    # One at a time: two that load need the memory of both.
    if key not in self._keys:
      async with self._loading:
        if key not in self._keys:
          await self._add(key, project, version)
    # The newest is the last.
    self._keys.pop(key, None)
    self._keys[key] = None
    return key

  def drop(self, project: str, reference: str) -> None:
    """Unloads NAME@NUMBER of a project, if it is loaded; it completes its answers."""
    for key in [each for each in self._keys if each.startswith(f"{project}/{reference}/")]:
      self._remove(key)

  def _remove(self, key: str) -> None:
    del self._keys[key]
    self.models.remove(key)

  async def _add(self, key: str, project: str, version: Version) -> None:
    while len(self._keys) >= self._max_students:
      self._remove(next(iter(self._keys)))
    student = await asyncio.to_thread(self._load, version)
    self.models.put(key, str(version.number), student)
    self._keys[key] = None
    say(f"loaded {project}/{version.reference}")


def load_student(private: PrivateJobs, version: Version) -> Student:
  """Loads a registered student, as `dss serve` does; raises SealedError as PrivateJobs.opened."""
  # Late: reading jobs and models needs no JAX.
  from dss_jax.config.schema import MeshConfig
  from dss_jax.parallel.mesh import make_mesh
  from dss_jax.serving.served_student import ServedStudent
  from dss_jax.storage.cache import keep_compiled_programs
  from dss_jax.student.student import Student as Opened

  keep_compiled_programs()
  mesh = make_mesh(MeshConfig(), _SLOTS)
  with private.opened(version) as folder:
    served = ServedStudent(Opened.open(folder), mesh, slots=_SLOTS)
    served.warm_up(_WARM_UP)
  return served
