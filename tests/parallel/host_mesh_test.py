"""A mesh over the devices of several processes: it uses all of them, and a row spans few."""

import dataclasses

import jax
import pytest

from dss_jax.config.schema import MeshConfig
from dss_jax.errors import UserError
from dss_jax.parallel import processes
from dss_jax.parallel.mesh import make_mesh


@dataclasses.dataclass(frozen=True)
class Device:
  """The attributes of a device that a mesh reads."""

  process_index: int
  id: int
  platform: str = "cpu"


@pytest.fixture
def hosts_of(monkeypatch):
  """Returns the process of each device of the mesh, [data, model]."""

  def hosts_of(hosts, each, config, batch_size):
    # The processes alternate in the list, as hosts of a torus may.
    devices = [Device(host, id) for id in range(each) for host in range(hosts)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    monkeypatch.setattr(processes, "count", lambda: hosts)
    mesh = make_mesh(config, batch_size)
    own = {
      host: [d.id for d in mesh.devices.flat if d.process_index == host] for host in range(hosts)
    }
    assert all(ids == sorted(ids) for ids in own.values())
    return [[device.process_index for device in row] for row in mesh.devices]

  return hosts_of


@pytest.mark.parametrize(
  ("hosts", "each", "config", "batch_size", "wanted"),
  [
    (2, 4, MeshConfig(), 24, [[0]] * 4 + [[1]] * 4),
    (2, 4, MeshConfig(model=4), 24, [[0] * 4, [1] * 4]),
    # A row wider than a process spans two of them.
    (4, 2, MeshConfig(model=4), 24, [[0, 0, 1, 1], [2, 2, 3, 3]]),
    # Fewer devices than available: the same number from each process.
    (2, 4, MeshConfig(), 4, [[0]] * 2 + [[1]] * 2),
    (2, 4, MeshConfig(data=2), 24, [[0], [1]]),
    (3, 2, MeshConfig(), 24, [[0], [0], [1], [1], [2], [2]]),
  ],
)
def test_a_mesh_uses_devices_of_every_process(hosts_of, hosts, each, config, batch_size, wanted):
  assert hosts_of(hosts, each, config, batch_size) == wanted


@pytest.mark.parametrize(
  ("hosts", "config", "batch_size", "says"),
  [
    (2, MeshConfig(), 7, "--batch-size 7 does not divide over 2 processes; choose a multiple of 2"),
    (2, MeshConfig(data=1), 24, "--mesh data=1,model=1 does not divide over 2 processes"),
    (4, MeshConfig(data=2), 24, "a multiple of 4"),
  ],
)
def test_a_mesh_that_leaves_a_process_out_is_refused(hosts_of, hosts, config, batch_size, says):
  with pytest.raises(UserError, match=says):
    hosts_of(hosts, 4, config, batch_size)


def test_one_machine_of_a_slice_is_refused_without_the_others(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 8)
  with pytest.raises(UserError, match=r"a group of 8 machines; give .* --distributed"):
    make_mesh(MeshConfig(), 24)
