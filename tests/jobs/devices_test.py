"""What a device set has is asked of a program of its own, once."""

import json

import pytest

from dss_jax.errors import UserError
from dss_jax.jobs.devices import Devices, Need, find_devices
from dss_jax.jobs.settings import DeviceSet, Settings

FLAGS = "--xla_force_host_platform_device_count="


def settings(**environment):
  environment = {"JAX_PLATFORMS": "cpu", **environment}
  return Settings(device_sets=(DeviceSet(name="one", environment=environment),))


def test_devices_are_found_once(tmp_path):
  three = settings(XLA_FLAGS=f"{FLAGS}3")
  assert find_devices(three, tmp_path) == {"one": Devices("cpu", 3)}
  path = tmp_path / "devices.json"
  (key,) = known = json.loads(path.read_text())
  # Devices that a job has taken cannot be asked again.
  path.write_text(json.dumps({**known, key: ["tpu", 8]}))
  assert find_devices(three, tmp_path) == {"one": Devices("tpu", 8)}
  assert find_devices(settings(XLA_FLAGS=f"{FLAGS}2"), tmp_path) == {"one": Devices("cpu", 2)}


def test_what_the_operator_says_is_not_asked(tmp_path):
  one = DeviceSet(name="one", platform="tpu", devices=64)
  assert find_devices(Settings(device_sets=(one,)), tmp_path) == {"one": Devices("tpu", 64)}
  assert not list(tmp_path.iterdir())


def test_devices_that_are_not_there(tmp_path):
  with pytest.raises(UserError, match="device_sets: one: its devices cannot be found"):
    find_devices(settings(JAX_PLATFORMS="none-such"), tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("need", "satisfied"),
  [
    (Need("tpu", 64), True),
    (Need(None, 1), True),
    (Need("tpu", 65), False),
    (Need("gpu", 1), False),
  ],
)
def test_needs(need, satisfied):
  assert Devices("tpu", 64).satisfy(need) == satisfied
