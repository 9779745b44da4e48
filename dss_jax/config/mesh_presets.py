"""The values of `--mesh`: axes (data=8,model=8), a shipped mesh (v3-64) or a TPU slice (v5e-16).

A shipped mesh is a file of gin_configs/meshes. A slice has Cloud TPU's name: its generation and
a number that counts TensorCores on v2, v3, v4 and v5p, and chips on v5e and v6e. A program sees
a device for each core of v2 and v3, and for each chip of the others. A slice uses its
generation's file with axes for its devices: data = 8 (or all devices, if fewer), which divides 24
examples, and model = the rest.
"""

import functools
import math
from typing import Any, NamedTuple

from dss_jax.config.schema import MeshConfig, shipped_folder
from dss_jax.errors import UserError

# Devices of a slice along the data axis, if it has as many.
DATA_DEVICES = 8

# The topology of the chips of each slice, by generation and the number in Cloud TPU's name.
_TWO_CORES_PLANE = {8: "2x2", 32: "4x4", 64: "4x8", 128: "8x8", 256: "8x16", 512: "16x16"}
_TWO_CORES_CUBE = {
  8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8", 512: "4x8x8"
}  # fmt: skip
_ONE_CORE_PLANE = {
  4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"
}  # fmt: skip
LAYOUTS = {
  "v2": _TWO_CORES_PLANE,
  "v3": _TWO_CORES_PLANE,
  "v4": _TWO_CORES_CUBE,
  "v5e": _ONE_CORE_PLANE,
  "v5p": _TWO_CORES_CUBE,
  "v6e": _ONE_CORE_PLANE,
}
# The file of each generation, and the size of its slice if the name has no number.
_FILES = {"v2": "v2", "v3": "v3-64", "v4": "v4", "v5e": "v5e", "v5p": "v5p", "v6e": "v6e"}
_DEFAULT_SIZES = {"v2": 64, "v3": 64, "v4": 128, "v5e": 64, "v5p": 128, "v6e": 64}


class Slice(NamedTuple):
  """A TPU slice.

  Attributes:
    name: Cloud TPU's, such as v3-64.
    layout: the topology of its chips, such as 4x8.
    devices: the number that a program sees.
    chips: the number that is paid for.
  """

  name: str
  generation: str
  layout: str
  devices: int
  chips: int


class MeshChoice(NamedTuple):
  """The gin files that --mesh adds, and axes that win over theirs."""

  files: list[str]
  axes: dict[str, int]
  slice: Slice | None


def mesh_choice(text: str | None) -> MeshChoice:
  """Parses the value of --mesh; raises UserError if it is none of the three kinds."""
  if not text:
    return MeshChoice([], {}, None)
  if "=" in text:
    return MeshChoice([], _axes(text), None)
  generation, _, size = text.partition("-")
  parsed = None
  if generation in LAYOUTS and (size.isdecimal() or text == generation):
    parsed = tpu_slice(generation, int(size) if size else _DEFAULT_SIZES[generation])
  if text in mesh_names():
    return MeshChoice([f"meshes/{text}.gin"], {}, parsed)
  if parsed is None:
    raise UserError(
      f"--mesh {text}: {text!r} is neither axes nor a mesh; write data=N,model=M, from 1 up, or "
      f"one of {', '.join(mesh_names())}, or a TPU slice such as v5e-16"
    )
  data = min(parsed.devices, DATA_DEVICES)
  axes = {"data": data, "model": parsed.devices // data}
  return MeshChoice([f"meshes/{_FILES[generation]}.gin"], axes, parsed)


def mesh_config(text: str | None) -> MeshConfig:
  """Returns the mesh that --mesh names, without its other settings, for use without training."""
  from dss_jax.config.gin_loader import value_in

  choice = mesh_choice(text)
  values: dict[str, Any] = {
    name: value_in(choice.files, f"MeshConfig.{name}") for name in ("data", "model", "platform")
  }
  given = {name: value for name, value in values.items() if value is not None}
  return MeshConfig(**{**given, **choice.axes})


def tpu_slice(generation: str, size: int) -> Slice:
  """Returns a slice of a generation; raises UserError for a size that does not exist."""
  layouts = LAYOUTS[generation]
  if size not in layouts:
    raise UserError(
      f"--mesh {generation}-{size}: there is no such slice; choose one of "
      f"{', '.join(f'{generation}-{known}' for known in layouts)}"
    )
  chips = math.prod(map(int, layouts[size].split("x")))
  devices = size if generation in ("v2", "v3") else chips
  return Slice(f"{generation}-{size}", generation, layouts[size], devices, chips)


@functools.cache
def mesh_names() -> list[str]:
  """Returns the shipped meshes: the files of gin_configs/meshes."""
  return sorted(path.stem for path in (shipped_folder("gin_configs") / "meshes").glob("*.gin"))


def _axes(text: str) -> dict[str, int]:
  """Parses `data=4,model=2`."""
  axes = {}
  for part in text.split(","):
    if not part:
      continue
    name, _, size = part.partition("=")
    if name not in ("data", "model") or not size.isdecimal() or int(size) < 1:
      raise UserError(
        f"--mesh {text}: {part!r} is not an axis; write data=N,model=M, from 1 up, or one of "
        f"{', '.join(mesh_names())}"
      )
    axes[name] = int(size)
  return axes
