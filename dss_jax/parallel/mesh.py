"""The device mesh of a run."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from dss_jax.config.schema import MeshConfig
from dss_jax.errors import UserError
from dss_jax.parallel import processes


def make_mesh(config: MeshConfig, batch_size: int, devices: Sequence[Any] | None = None) -> Mesh:
  """Builds the mesh ('data', 'model'); by default data is the largest divisor of the batch size.

  Args:
    devices: of a topology to compile for; None uses this program's.

  Raises:
    UserError: the mesh needs more devices than there are, or another platform, or its data axis
      does not divide the batch size.
  """
  hosts = 1
  if devices is None:
    devices = jax.devices()
    hosts = jax.process_count()
    if hosts != processes.count():
      raise UserError(
        f"this machine's devices are part of a group of {hosts} machines; give `dss distill`, "
        "`tune` or `train` --distributed on all of them, or set TPU_PROCESS_BOUNDS=1,1,1 and "
        "TPU_VISIBLE_CHIPS to use this machine's devices alone"
      )
  platform = devices[0].platform
  if config.platform is not None and config.platform != platform:
    raise UserError(
      f"--mesh data={config.data or 1},model={config.model} is for {config.platform.upper()} "
      f"devices and there are {len(devices)} of {platform.upper()}; run it where those are, or "
      f"give --mesh data=N,model=M with a product of at most {len(devices)}"
    )
  available = len(devices) // config.model
  data = config.data
  if data is None:
    candidates = [n for n in range(1, available + 1) if n * config.model % hosts == 0]
    data = max((n for n in candidates if batch_size % n == 0), default=0)
    if candidates and not data:
      raise UserError(
        f"--batch-size {batch_size} does not divide over {hosts} processes; choose a multiple of "
        f"{min(candidates)}"
      )
  if data == 0 or data * config.model > len(devices):
    raise UserError(
      f"--mesh data={data or 1},model={config.model} needs {max(data, 1) * config.model} devices "
      f"and there are {len(devices)}; choose numbers whose product is at most {len(devices)}"
    )
  if batch_size % data:
    raise UserError(
      f"--mesh data={data} does not divide the batch of {batch_size} examples; "
      f"choose a divisor of {batch_size}"
    )
  if data * config.model % hosts:
    raise UserError(
      f"--mesh data={data},model={config.model} does not divide over {hosts} processes; choose "
      f"numbers whose product is a multiple of {hosts}"
    )
  return Mesh(
    _device_array(devices, (data, config.model), hosts),
    ("data", "model"),
    axis_types=(AxisType.Auto, AxisType.Auto),
  )


def _device_array(devices: Sequence[Any], shape: tuple[int, int], hosts: int) -> np.ndarray:
  """Arranges the devices in an array of the shape; on TPU, linked devices are neighbours.

  Takes the same number of devices from each host, host by host, so that a row spans few hosts.
  """
  count = math.prod(shape)
  if devices[0].platform == "tpu" and count == len(devices):
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  by_host = [
    [device for device in devices if hosts == 1 or device.process_index == host]
    for host in range(hosts)
  ]
  return np.array([own[: count // hosts] for own in by_host]).reshape(shape)
