"""--mesh: axes, shipped meshes and TPU slices by Cloud TPU's names."""

import pytest

from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.mesh_presets import (
  LAYOUTS,
  Slice,
  mesh_choice,
  mesh_config,
  mesh_names,
  tpu_slice,
)
from dss_jax.config.schema import MeshConfig, RunConfig, shipped_folder
from dss_jax.errors import UserError


def load(choice, *bindings):
  axes = [Binding(f"MeshConfig.{axis}", size, "--mesh") for axis, size in choice.axes.items()]
  files = ["runs/distill.gin", "models/base.gin", *choice.files]
  return load_config(RunConfig, files, [Binding("MODEL_DIR", "x", "test"), *axes, *bindings])


@pytest.mark.parametrize(
  ("text", "axes"),
  [
    (None, {}),
    ("", {}),
    ("data=4", {"data": 4}),
    ("data=4,model=2", {"data": 4, "model": 2}),
  ],
)
def test_axes(text, axes):
  assert mesh_choice(text) == ([], axes, None)
  assert mesh_config(text) == MeshConfig(**axes)


@pytest.mark.parametrize(
  ("text", "want"),
  [
    # v2 to v5p count TensorCores in their names, v5e and v6e chips.
    ("v3-64", Slice("v3-64", "v3", "4x8", 64, 32)),
    ("v2-8", Slice("v2-8", "v2", "2x2", 8, 4)),
    ("v4-64", Slice("v4-64", "v4", "2x4x4", 32, 32)),
    ("v5p-128", Slice("v5p-128", "v5p", "4x4x4", 64, 64)),
    ("v5e-64", Slice("v5e-64", "v5e", "8x8", 64, 64)),
    ("v6e-8", Slice("v6e-8", "v6e", "2x4", 8, 8)),
    # A file without a number is for 64 devices.
    ("v4", Slice("v4-128", "v4", "4x4x4", 64, 64)),
    ("v5e", Slice("v5e-64", "v5e", "8x8", 64, 64)),
  ],
)
def test_slices_have_cloud_tpu_s_names(text, want):
  assert mesh_choice(text).slice == want


@pytest.mark.parametrize("generation", LAYOUTS)
def test_a_slice_s_axes_use_all_of_its_devices(generation):
  for size in LAYOUTS[generation]:
    choice = mesh_choice(f"{generation}-{size}")
    config = load(choice)
    assert config.mesh.data * config.mesh.model == choice.slice.devices
    assert config.batch_size % config.mesh.data == 0
    assert config.mesh.platform == "tpu"
    assert (config.model.dtype, config.model.scan_layers) == ("bfloat16", True)


def test_v3_64_is_eight_by_eight():
  config = load(mesh_choice("v3-64"))
  assert (config.mesh.data, config.mesh.model, config.batch_size) == (8, 8, 24)


def test_gpu_8_has_one_example_per_device():
  config = load(mesh_choice("gpu-8"))
  assert (config.mesh.data, config.mesh.model, config.batch_size) == (8, 1, 8)
  flag = load(mesh_choice("gpu-8"), Binding("BATCH_SIZE", 16, "--batch-size"))
  assert flag.batch_size == 16


@pytest.mark.parametrize("name", ["cpu", "gpu-8", "v3-64", "v4", "v5e", "v5p", "v6e"])
def test_meshes_are_shipped(name):
  assert name in mesh_names()
  config = mesh_config(name)
  assert config == load(mesh_choice(name)).mesh
  assert config.platform == {"c": "cpu", "g": "gpu", "v": "tpu"}[name[0]]


def test_a_shipped_file_s_axes_use_all_devices_of_its_slice():
  for name in mesh_names():
    choice = mesh_choice(name)
    if choice.slice is not None:
      mesh = mesh_config(name)
      assert mesh.data * mesh.model == choice.slice.devices, name
  assert len(list((shipped_folder("gin_configs") / "meshes").glob("*.gin"))) == len(mesh_names())


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("all", ["--mesh all", "data=N,model=M", "gpu-8", "v3-64", "v5e-16"]),
    ("v3-", ["--mesh v3-", "v3-64"]),
    ("v3-x", ["--mesh v3-x", "v3-64"]),
    ("data=0", ["'data=0'", "from 1 up"]),
    ("data=1,rows=2", ["'rows=2'", "data=N,model=M"]),
    ("v3-63", ["--mesh v3-63", "v3-8", "v3-64"]),
    ("v5e-512", ["--mesh v5e-512", "v5e-256"]),
  ],
)
def test_an_unknown_mesh_is_refused(text, words):
  with pytest.raises(UserError) as caught:
    mesh_choice(text)
  assert all(word in str(caught.value) for word in words), caught.value
  assert "\n" not in str(caught.value)


def test_an_unknown_slice_size_is_refused():
  with pytest.raises(UserError, match="v4-256"):
    tpu_slice("v4", 4)
