"""Students are loaded once, when they are first asked for, and make room for others."""

import asyncio
import pathlib

import pytest

from dss_jax.jobs.students.student_pool import StudentPool
from dss_jax.storage.sealed import SealedError
from dss_jax.student.registry import Version
from tests.serving.conftest import EchoStudent


def version(name, created="2026"):
  return Version(name, 1, pathlib.Path(name), (), (), {"created": created}, {})


@pytest.fixture
def loaded():
  return []


@pytest.fixture
def pool(loaded):
  def load(version):
    loaded.append(version.name)
    if version.name == "broken":
      raise RuntimeError("out of memory")
    return EchoStudent()

  return StudentPool(load, max_students=2)


def test_the_one_not_asked_for_the_longest_makes_room(pool, loaded):
  async def ask(*names):
    for name in names:
      key = await pool.ready("sums", version(name))
      assert pool.models.get(key)[0].version == "1"

  asyncio.run(ask("a", "b", "a", "c", "a", "b"))
  assert loaded == ["a", "b", "c", "b"]
  assert {model.name for model in pool.models} == {"sums/a@1/2026", "sums/b@1/2026"}


def test_many_requests_load_a_student_once(pool, loaded):
  async def ask():
    await asyncio.gather(*(pool.ready("sums", version("a")) for _ in range(9)))

  asyncio.run(ask())
  assert loaded == ["a"]


def test_projects_have_students_of_their_own(pool, loaded):
  async def ask():
    return [await pool.ready(project, version("a")) for project in ("sums", "other")]

  assert asyncio.run(ask()) == ["sums/a@1/2026", "other/a@1/2026"]
  assert loaded == ["a", "a"]


def test_one_that_cannot_be_loaded_is_tried_again(pool, loaded):
  async def ask():
    for _ in range(2):
      with pytest.raises(RuntimeError, match="out of memory"):
        await pool.ready("sums", version("broken"))
    pool.drop("sums", "broken@1")

  asyncio.run(ask())
  assert loaded == ["broken", "broken"]
  assert list(pool.models) == []


def test_a_version_that_was_registered_anew_is_another_one(pool, loaded):
  async def ask():
    for created in ("2026", "2027"):
      await pool.ready("sums", version("a", created))
    pool.drop("sums", "a@1")

  asyncio.run(ask())
  assert loaded == ["a", "a"]
  assert list(pool.models) == []


def test_one_that_may_not_be_asked_any_more_is_unloaded(loaded):
  """As an encrypted student whose key was taken away."""
  allowed = ["a"]

  def check(project, version):
    if version.name not in allowed:
      raise SealedError("the key is gone")

  def load(version):
    loaded.append(version.name)
    return EchoStudent()

  pool = StudentPool(load, max_students=2, check=check)

  async def ask():
    await pool.ready("sums", version("a"))
    allowed.clear()
    with pytest.raises(SealedError, match="the key is gone"):
      await pool.ready("sums", version("a"))
    assert list(pool.models) == []
    allowed.append("a")
    await pool.ready("sums", version("a"))

  asyncio.run(ask())
  assert loaded == ["a", "a"]
