"""The mesh of a run: which devices, along which axes."""

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
  """The mesh ('data', 'model'); unless given, data is as large as the batch divides over.

  Args:
    devices: those of this program if None; of a topology to plan for, else.

  Raises UserError for a mesh that asks for more devices than there are or for those of another
  platform, or whose data axis does not divide the batch.
  """
  hosts = 1
  if devices is None:
    devices = jax.devices()
    hosts = jax.process_count()
    if hosts != processes.count():
      raise UserError(
        f"this machine's devices are part of a group of {hosts} machines; give `dss distill`, "
        "`tune` or `train` --distributed on all of them, or set TPU_PROCESS_BOUNDS=1,1,1 and "
        "TPU_VISIBLE_CHIPS to use this machine's alone"
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
    fitting = [n for n in range(1, available + 1) if n * config.model % hosts == 0]
    data = max((n for n in fitting if batch_size % n == 0), default=0)
    if fitting and not data:
      raise UserError(
        f"--batch-size {batch_size} does not divide over {hosts} processes; choose a multiple of "
        f"{min(fitting)}"
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
    _arranged(devices, (data, config.model), hosts),
    ("data", "model"),
    axis_types=(AxisType.Auto, AxisType.Auto),
  )


def _arranged(devices: Sequence[Any], shape: tuple[int, int], hosts: int) -> np.ndarray:
  """The devices as an array of the shape; a TPU's so that neighbours are linked.

  As many are taken of each host, one host after the other: a row lies on few of them.
  """
  count = math.prod(shape)
  if devices[0].platform == "tpu" and count == len(devices):
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  by_host = [
    [device for device in devices if hosts == 1 or device.process_index == host]
    for host in range(hosts)
  ]
  return np.array([own[: count // hosts] for own in by_host]).reshape(shape)
