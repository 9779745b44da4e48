"""`dss plan` with the TPU's own compiler, on a machine without a TPU: a minute each."""

import importlib.util
import json
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
  """(exit code, output, errors) of a process of its own: libtpu is loaded once in each."""
  result = subprocess.run(
    [sys.executable, "-m", "dss_jax.cli.main", "plan", *arguments],
    capture_output=True,
    text=True,
    timeout=1500,
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
  # Six heads over eight devices, and hardly a permutation.
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
