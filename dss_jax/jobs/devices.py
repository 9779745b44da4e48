"""The devices of a server's device sets, and whether they are what a run needs."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from dss_jax.config.schema import RunConfig
from dss_jax.errors import UserError
from dss_jax.jobs.settings import DeviceSet, Settings
from dss_jax.storage.atomic import write_text

_FILE = "devices.json"
_PROBE = "import jax, json; d = jax.devices(); print(json.dumps([d[0].platform, len(d)]))"
_PROBE_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class Need:
  """The devices that a run needs: how many, and of which platform (None: any)."""

  platform: str | None
  devices: int


@dataclasses.dataclass(frozen=True)
class Devices:
  """What a program sees in a device set."""

  platform: str
  count: int

  def satisfy(self, need: Need) -> bool:
    return need.platform in (None, self.platform) and need.devices <= self.count


def need_of(config: RunConfig) -> Need:
  mesh = config.mesh
  return Need(mesh.platform, (mesh.data or 1) * mesh.model)


def find_devices(settings: Settings, root: pathlib.Path) -> dict[str, Devices]:
  """Returns the devices of each device set: as configured, as found before, or as found now.

  What was found is kept under the root: devices that a running job holds cannot be asked again.

  Raises UserError if a device set has none.
  """
  path = root / _FILE
  try:
    known = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    known = {}
  found: dict[str, Devices] = {}
  for device_set in settings.device_sets:
    if device_set.platform is not None and device_set.devices is not None:
      found[device_set.name] = Devices(device_set.platform, device_set.devices)
      continue
    key = json.dumps([device_set.name, device_set.environment], sort_keys=True)
    if key not in known:
      known[key] = _probe(device_set)
      write_text(path, json.dumps(known, indent=2) + "\n")
    found[device_set.name] = Devices(*known[key])
  return found


def _probe(device_set: DeviceSet) -> Any:
  """Asks a program that has the set's environment; the server itself never takes the devices."""
  place = f"device_sets: {device_set.name}"
  try:
    result = subprocess.run(
      [sys.executable, "-c", _PROBE],
      env={**os.environ, **device_set.environment},
      capture_output=True,
      text=True,
      timeout=_PROBE_SECONDS,
    )
    return json.loads(result.stdout.splitlines()[-1])
  except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
    raise UserError(
      f"{place}: its devices cannot be found ({type(error).__name__}); correct its environment, or"
      " give its platform and devices"
    ) from None
