"""TPU slices as the compiler is told of them, on a machine that has none."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from dss_jax.config.mesh_presets import Slice
from dss_jax.errors import UserError

# libtpu asks the machine that it runs on about its TPU unless it is told that there is none.
_NO_TPU_HERE = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  # Unset, it complains; the slice that is compiled for is described apart from this.
  "TPU_ACCELERATOR_TYPE": "v3-8",
  # The compiler's threads have 64 KiB of stack, which programs for v5e and v6e overflow.
  "LIBTPU_INIT_ARGS": "--fibers_default_thread_stack_size=2097152",
}


def check_slice(tpu_slice: Slice | None, text: str) -> Slice:
  """The slice that --mesh names; raises UserError where it names none."""
  if tpu_slice is None:
    raise UserError(
      f"--mesh {text}: is no TPU slice, and dss plan compiles for those alone; choose v3-64, "
      "v5e-64 or another of docs/tpu.md"
    )
  return tpu_slice


def prepare_compiler() -> None:
  """Tells libtpu that there is no TPU here; call it before JAX is imported.

  Raises UserError where libtpu is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      "dss plan compiles with libtpu, which is not installed; install it with "
      "`pip install 'dss-jax[tpu]'`"
    )
  for name, value in _NO_TPU_HERE.items():
    os.environ.setdefault(name, value)


def topology_devices(tpu_slice: Slice) -> Sequence[Any]:
  """The devices of a TPU slice, as they are described to the compiler.

  Raises UserError where libtpu is missing or does not know the slice.
  """
  prepare_compiler()
  from jax.experimental import topologies

  # On v4 the two cores of a chip are one device, as the runtime has them.
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
