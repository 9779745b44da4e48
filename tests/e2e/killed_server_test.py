"""SIGKILL of a server that answers, and of a process that changes its registry meanwhile."""

import concurrent.futures
import contextlib
import http.client
import pathlib
import random
import subprocess
import sys
import threading
import time
import urllib.error

import pytest

from dss_jax.config.schema import MeshConfig
from dss_jax.parallel.mesh import make_mesh
from dss_jax.student.registration import register_student
from dss_jax.student.registry import Registry
from dss_jax.student.student import Student
from tests.fixtures.server_process import post, served

ALIASES = ("default", "stable", "prod")
CLIENTS = 4
WRITERS_A_SERVER = 3


@pytest.fixture
def pair(with_student):
  """A working folder with two students: the first is mine@stable in the registry."""
  with_student.train("other", "--seed", "7")
  registry = with_student.folder / "registry"
  version = register_student(with_student.folder / "student", "mine", registry)
  Registry(registry).merge_aliases(version.reference, ALIASES)
  return with_student


def contents(workshop, folder):
  """What a version's folder has, but for the record of its registration."""
  files = workshop.tree(str(folder.relative_to(workshop.folder)))
  return {name: digest for name, digest in files.items() if name != "version.json"}


@pytest.fixture
def expected(pair):
  """What a version may hold: the files of the one student or of the other."""
  whole = pair.folder / "whole"
  return [
    contents(pair, register_student(pair.folder / name, "mine", whole).folder)
    for name in ("student", "other")
  ]


@contextlib.contextmanager
def writer(folder):
  """A function that changes the registry for some seconds; how often, until it was killed."""
  script = pathlib.Path(__file__).with_name("killed_writer.py")
  process = subprocess.Popen(
    [sys.executable, str(script), "registry", "student", "other"],
    cwd=folder,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )

  def write(seconds):
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return int(process.stdout.readline())

  try:
    yield write
  finally:
    process.stdin.close()
    process.wait(timeout=60)


@contextlib.contextmanager
def clients(url):
  """Clients that ask without a pause until the server is gone; gives their answers' statuses."""
  statuses = []
  body = {"model": "mine@stable", "prompt": ["Add 1 and 2.", "Add 3 and 4."], "explain": True}

  def ask():
    with contextlib.suppress(urllib.error.URLError, http.client.HTTPException, OSError):
      while True:
        statuses.append(post(f"{url}/v1/completions", body)[0])

  threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
  for thread in threads:
    thread.start()
  yield statuses
  for thread in threads:
    thread.join(timeout=60)
    assert not thread.is_alive()


def assert_intact(pair, expected):
  """Every version opens and is whole, the aliases mean one, and commands find no lock."""
  registry = Registry(pair.folder / "registry")
  versions = registry.versions("mine")
  for version in versions:
    Student.open(version.folder).params(make_mesh(MeshConfig(data=1), 4))
    assert contents(pair, version.folder) in expected
  visible = [path.name for path in (registry.root / "mine").iterdir() if path.name[0] != "."]
  assert sorted(visible) == sorted(["index.json", *(str(one.number) for one in versions)])
  assert len({registry.version(f"mine@{alias}").number for alias in ALIASES}) == 1
  shown = pair("models", "list", "--json", "--registry", "registry")
  assert [one["version"] for one in shown.json] == [one.number for one in versions]
  for flags in ((), ("--remove",)):
    moved = pair("models", "alias", "mine@stable", "checked", "--registry", "registry", *flags)
    assert moved.code == 0, moved.err


@pytest.mark.parametrize(
  "kills", [pytest.param(2, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.slow)]
)
def test_nothing_is_half_done(kills, pair, expected):
  dice = random.Random(kills)
  registered, answers = 0, 0
  with writer(pair.folder) as write, concurrent.futures.ThreadPoolExecutor(1) as pool:
    for _ in range(kills):
      with served(pair.folder, "--model", "mine@stable") as (server, url), clients(url) as statuses:
        while len(statuses) < CLIENTS:
          assert server.poll() is None
          time.sleep(0.01)
        for _ in range(WRITERS_A_SERVER - 1):
          registered += write(dice.uniform(0, 1.5))
          assert_intact(pair, expected)
        # The last one is killed before the server or after it.
        last = pool.submit(write, dice.uniform(0, 1.5))
        time.sleep(dice.uniform(0, 2))
        server.kill()
        registered += last.result()
      assert set(statuses) == {200}
      answers += len(statuses)
      assert_intact(pair, expected)
  with served(pair.folder, "--model", "mine@stable") as (_, url):
    body = {"model": "mine@stable", "prompt": "Add 1 and 2."}
    assert post(f"{url}/v1/completions", body)[0] == 200
  # Shown by pytest -s.
  print(f"{kills} servers, {kills * WRITERS_A_SERVER} writers, {registered=}, {answers=}")
