"""Shared set-up: eight virtual CPU devices, an own cache, the data that lies beside a checkout."""

import os
import pathlib

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Fixtures that several folders of tests use.
pytest_plugins = (
  "tests.fixtures.networks",
  "tests.fixtures.small_runs",
  "tests.fixtures.teacher_server",
)

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  """Token stores of a test go to a folder of the test session."""
  monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "dss_cache"))


@pytest.fixture
def shared():
  """The folder of real data sets; tests that need it skip where it is absent."""
  if not SHARED.is_dir():
    pytest.skip(f"the real data sets are not at {SHARED}")
  return SHARED


@pytest.fixture(scope="session")
def compile_quickly():
  """Has tiny programs, of which there are many, compiled with little optimisation.

  It halves the time, where no test before has started JAX. Commands that tests start run as
  users run them.
  """
  import jax

  with pytest.MonkeyPatch.context() as patch:
    flags = os.environ["XLA_FLAGS"]
    patch.setenv("XLA_FLAGS", f"{flags} --xla_backend_optimization_level=0")
    jax.devices()


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
