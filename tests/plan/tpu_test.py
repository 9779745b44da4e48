"""`dss plan` with the TPU's compiler, on a machine without a TPU; about a minute each."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = [
  pytest.mark.tpu_aot,
  pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'dss-jax[tpu]', or `make test-tpu`",
  ),
]


def plan(*arguments):
  """Runs `dss plan` in a new process, since libtpu loads once: (exit code, output, errors)."""
  ours = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
  environment = {name: value for name, value in os.environ.items() if name not in ours}
  result = subprocess.run(
    [sys.executable, "-m", "dss_jax.cli.main", "plan", *arguments],
    capture_output=True,
    text=True,
    timeout=1500,
    env=environment,
  )
  return result.returncode, result.stdout, result.stderr


def test_small_fits_on_64_cores():
  code, out, err = plan("--student", "small", "--mesh", "v3-64", "--json")
  assert code == 0, err
  report = json.loads(out)
  assert report["fits"]
  assert report["peak_gib_per_core"] <= 0.30
  assert report["limit_gib_per_core"] == 15.48
  assert report["mesh"] == {"data": 8, "model": 8}
  assert report["flops_per_step"] > 0
  # Six heads over eight devices cause few permutations.
  assert report["collectives"].get("collective-permute", {"count": 0})["count"] < 52
  assert report["floor_seconds"]["step"] > 0


def test_heads_that_divide_are_not_permuted():
  code, out, err = plan("--student", "large", "--mesh", "v3-64", "--json")
  assert code == 0, err
  report = json.loads(out)
  assert report["fits"]
  assert report["peak_gib_per_core"] <= 1.10
  assert report["weights_over_data"]
  assert "collective-permute" not in report["collectives"]
