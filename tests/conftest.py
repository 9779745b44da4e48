"""Shared set-up: eight virtual CPU devices, an own cache, the data that lies beside a checkout."""

import ctypes
import gc
import importlib.metadata
import os
import pathlib
import sys
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile thousands of tiny programs: what makes a program fast, or is done once for each,
# costs more than it gains. A worker of pytest-xdist finds the flags set already.
FLAGS = [
  "--xla_force_host_platform_device_count=8",
  "--xla_backend_optimization_level=0",
  "--xla_cpu_parallel_codegen_split_count=1",
]
# XLA ends a process that names a flag which it does not know, as newer ones do not know this one.
if importlib.metadata.version("jaxlib").startswith("0.10."):
  FLAGS.append("--xla_cpu_use_fusion_emitters=false")
for flag in FLAGS:
  if flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Fixtures that several folders of tests use.
pytest_plugins = (
  "tests.fixtures.networks",
  "tests.fixtures.small_runs",
  "tests.fixtures.teacher_server",
  "tests.fixtures.vocabularies",
)

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

# Beyond this, a process forgets its compiled programs, which take a megabyte each.
MAX_RESIDENT_BYTES = 2**30


def pytest_configure(config):
  """Makes the session's cache of compiled programs and token stores.

  The workers of pytest-xdist and the commands that tests start inherit it.
  """
  if hasattr(config, "workerinput"):
    return
  folder = tempfile.TemporaryDirectory(prefix="dss_jax_tests_")
  config.add_cleanup(folder.cleanup)
  os.environ["DSS_CACHE_DIR"] = folder.name
  os.environ["DSS_REGISTRY_DIR"] = f"{folder.name}/registry"
  os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder.name}/xla"
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
  """After a module, returns the memory of compiled programs to Linux if they take much of it."""
  yield
  statm = pathlib.Path("/proc/self/statm")
  if not statm.exists() or "jax" not in sys.modules:
    return
  if int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > MAX_RESIDENT_BYTES:
    sys.modules["jax"].clear_caches()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def shared():
  """The folder of real data sets; tests that need it skip where it is absent."""
  if not SHARED.is_dir():
    pytest.skip(f"the real data sets are not at {SHARED}")
  return SHARED


@pytest.fixture(scope="session")
def assert_same():
  """Stored arrays by name are the same: names, dtypes and every number."""

  import numpy as np

  def assert_same(one, other):
    assert set(one) == set(other)
    for name in one:
      left, right = one[name].whole(), other[name].whole()
      np.testing.assert_array_equal(left, right, strict=True)

  return assert_same
