"""Weights are read part by part: no device another's part, no host the whole model."""

import os
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from dss_jax.checkpoints.arrays import StoredArray, in_memory, lay_out
from dss_jax.config.schema import MeshConfig
from dss_jax.parallel.mesh import make_mesh
from dss_jax.parallel.sharding import params_shape


def test_every_device_reads_its_own_part_once(arrays, small, index):
  mesh = make_mesh(MeshConfig(data=2, model=4), 4)
  asked = {}

  def watched(name, array):
    def read(index):
      asked.setdefault(name, []).append(index)
      return array.read(index)

    return StoredArray(array.shape, array.dtype, read)

  placed = lay_out(
    {name: watched(name, array) for name, array in arrays.items()}, params_shape(small, mesh)
  )
  jax.tree_util.tree_map_with_path(
    lambda path, leaf: np.testing.assert_array_equal(
      leaf, arrays[".".join(key.key for key in path)].whole()
    ),
    placed,
  )
  for name, dimension, parts in (
    ("token_embedder.embedding", 1, [(0, 4), (4, 8), (8, 12), (12, 16)]),
    ("encoder.layers_0.mlp.wi_0.kernel", 1, [(0, 10), (10, 20), (20, 30), (30, 40)]),
    ("encoder.layers_0.mlp.wo.kernel", 0, [(0, 10), (10, 20), (20, 30), (30, 40)]),
  ):
    read = [(index[dimension].start, index[dimension].stop) for index in asked[name]]
    assert sorted(read) == parts


def test_parts_of_turned_and_joined_arrays(index):
  whole = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
  stored = in_memory(whole)
  layer = stored.taken(1, 2).joined(1)
  want = whole[:, 2].reshape(2, 20)
  assert layer.shape == want.shape
  first = stored.taken(3, 4).joined(0)
  assert first.shape == (6, 4)
  for start in range(20):
    for stop in range(start + 1, 21):
      index = (slice(1, 2), slice(start, stop))
      np.testing.assert_array_equal(layer.read(index), want[index])
      np.testing.assert_array_equal(layer.transposed().read(index[::-1]), want[index].T)
  np.testing.assert_array_equal(first.whole(), whole[..., 4].reshape(6, 4))


MEMORY = """
  import os, sys
  os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
  os.environ["JAX_PLATFORMS"] = "cpu"
  import numpy as np
  from dss_jax.config.schema import MeshConfig, T5Config
  from dss_jax.checkpoints import arrays as stored
  from dss_jax.checkpoints import zarr as zarr_writer
  from dss_jax.checkpoints.t5x_read import read_t5x
  from dss_jax.checkpoints.t5x_write import write_t5x
  from dss_jax.parallel.mesh import make_mesh
  from dss_jax.parallel.sharding import params_shape

  config = T5Config(emb_dim=512, num_heads=8, head_dim=8, mlp_dim=32768, num_encoder_layers=1,
                    num_decoder_layers=1, vocab_size=32768)
  shapes = stored.model_shapes(config)

  def peak():
    with open("/proc/self/status") as status:
      return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

  def cheap(shape):
    return stored.StoredArray(shape, np.dtype(np.float32), lambda index: np.full(
      [one.stop - one.start for one in index], 0.5, np.float32))

  if sys.argv[2] == "write":
    zarr_writer.CHUNK_BYTES = 2**24
    write_t5x({name: cheap(shape) for name, shape in shapes.items()}, sys.argv[1], step=0,
              dtype=np.dtype(np.float32))
  else:
    mesh = make_mesh(MeshConfig(data=1, model=8), 8)
    shape = params_shape(config, mesh)
    arrays = read_t5x(sys.argv[1] + "/checkpoint_0")
  before = peak()
  if sys.argv[2] != "write":
    params = stored.lay_out(arrays, shape)
    total = sum(4 * int(np.prod(one)) for one in shapes.values())
    print(peak() - before, total)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_no_host_holds_the_model_beside_its_devices(tmp_path):
  """The virtual devices' memory is the host's, so the growth is the model and little more."""

  def run(mode):
    code = textwrap.dedent(MEMORY)
    command = [sys.executable, "-c", code, str(tmp_path), mode]
    # Else the allocator keeps what was freed, and the peak says little.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return subprocess.run(
      command, check=True, capture_output=True, text=True, env=environment
    ).stdout

  run("write")
  grown, total = map(int, run("parts").split())
  assert total > 500e6
  assert 0.8 * total < grown < 1.4 * total
