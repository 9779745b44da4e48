"""Descriptions of TPU slices for the compiler, on a machine without TPUs."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from dss_jax.config.mesh_presets import Slice
from dss_jax.errors import UserError

# Keeps libtpu from looking for a TPU on this machine.
_NO_TPU_HERE = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  # libtpu warns if this is unset; it does not affect the slice that is compiled for.
  "TPU_ACCELERATOR_TYPE": "v3-8",
  # Programs for v5e and v6e overflow the compiler threads' default stack of 64 KiB.
  "LIBTPU_INIT_ARGS": "--fibers_default_thread_stack_size=2097152",
}


def check_slice(tpu_slice: Slice | None, text: str) -> Slice:
  """Returns the slice that --mesh names; raises UserError if it names none."""
  if tpu_slice is None:
    raise UserError(
      f"--mesh {text}: is not a TPU slice, and dss plan compiles for those only; choose v3-64, "
      "v5e-64 or another of docs/tpu.md"
    )
  return tpu_slice


def prepare_compiler() -> None:
  """Sets libtpu's variables for a machine without TPUs; call it before JAX is imported.

  Raises UserError if libtpu is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      "dss plan compiles with libtpu, which is not installed; install it with "
      "`pip install 'dss-jax[tpu]'`"
    )
  for name, value in _NO_TPU_HERE.items():
    os.environ.setdefault(name, value)


def topology_devices(tpu_slice: Slice) -> Sequence[Any]:
  """Returns the devices of a TPU slice, for the compiler.

  Raises UserError if libtpu is missing or does not know the slice.
  """
  prepare_compiler()
  from jax.experimental import topologies

  # On v4 the two cores of a chip are one device, as in the runtime.
  options = {"chip_config_name": "megacore"} if tpu_slice.generation == "v4" else {}
  name = f"{tpu_slice.generation}:{tpu_slice.layout}"
  try:
    topology = topologies.get_topology_desc(topology_name=name, platform="tpu", **options)
  except Exception as error:
    reason = str(error).strip().splitlines()[0]
    raise UserError(
      f"--mesh {tpu_slice.name}: libtpu describes no topology {name} ({reason}); install the "
      "version that the extra names: `pip install 'dss-jax[tpu]'`"
    ) from error
  return topology.devices
