"""Reading T5X's native checkpoints: a msgpack index beside zarr arrays, or one msgpack file.

The index is `{version, optimizer: {target: weights, state: optimizer state}}`. It has each weight
itself, or the name of the weight's folder; anything else it says about a location is ignored.
Only the weights are decoded, and the moments on request.
"""

import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgpack
import numpy as np

from dss_jax.checkpoints.adafactor_moments import NO_STATE, StoredMoments, moments_of
from dss_jax.checkpoints.arrays import (
  BFLOAT16,
  FLOATS,
  StoredArray,
  StoredArrays,
  in_memory,
)
from dss_jax.checkpoints.folder import (
  CheckpointFolder,
  open_kvstore,
  read_keys,
  zarr_array,
)
from dss_jax.checkpoints.scanned_layers import unrolled_arrays
from dss_jax.errors import UserError

INDEX = "checkpoint"
# The oldest layout is read at once, so it must fit into memory; no large model has it.
_SINGLE_FILE_BYTES = 8 * 2**30
# Flax's codes of its msgpack extensions.
_NDARRAY = 1
_CHUNKED = "__msgpack_chunked_array__"
# Version 2 stored bfloat16 as unsigned integers of the same bits.
_DTYPES = {**FLOATS, "uint16": BFLOAT16}
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


class _Packed(NamedTuple):
  """A msgpack extension of flax, as bytes; decoded only if it is a weight."""

  code: int
  data: bytes


def read_t5x(path: str | os.PathLike[str]) -> StoredArrays:
  """Returns the weights of a native checkpoint by name, not read yet.

  Args:
    path: a folder with the file `checkpoint`, that file, or a single-file checkpoint; local or a
      URL.

  Raises:
    UserError: the index or an array's metadata is missing, damaged or not T5X's; a weight is
      outside the folder; the index is a pickle.
  """
  folder, place, tree = _opened(path)
  return unrolled_arrays(_arrays(folder, _target(tree, place), place), place)


def read_t5x_moments(path: str | os.PathLike[str]) -> StoredMoments:
  """Returns Adafactor's moments in a native checkpoint, not read yet.

  Raises:
    UserError: as read_t5x does, and if the checkpoint has only weights.
  """
  folder, place, tree = _opened(path)
  _target(tree, place)
  state = tree["optimizer"].get("state")
  branch = state.get("param_states") if isinstance(state, dict) else None
  if not isinstance(branch, dict) or not branch:
    raise UserError(f"{place}: {NO_STATE}")
  try:
    step = _decoded(state.get("step"), {"int32": np.dtype(np.int32)})
  except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
    raise UserError(
      f"{place}: the optimizer's step is no number ({error!s:.120}); copy the checkpoint again"
    ) from None
  return moments_of(_arrays(folder, branch, place), step, place)


def _opened(path: str | os.PathLike[str]) -> tuple[CheckpointFolder, str, Any]:
  """Returns a checkpoint's folder, the name of its index for errors, and the decoded index."""
  folder, name = _index_of(path)
  place = f"{folder.name}/{name}"
  raw = folder.read(name, _SINGLE_FILE_BYTES)
  if raw is None:
    raise UserError(f"{place}: no such file; give the folder of a T5X checkpoint")
  return folder, place, _unpacked(raw, place)


def _arrays(
  folder: CheckpointFolder, branch: Mapping[str, Any], place: str
) -> dict[str, StoredArray]:
  """Returns the arrays under a branch of the index, by dotted name."""
  leaves = dict(_leaves(branch, (), place))
  stored = {key: leaf for key, leaf in leaves.items() if _is_spec(leaf)}
  arrays = _stored_arrays(folder, stored, place)
  for key, leaf in leaves.items():
    if key not in arrays:
      arrays[key] = _inline(leaf, key, place)
  return {key: arrays[key] for key in leaves}


def _index_of(path: str | os.PathLike[str]) -> tuple[CheckpointFolder, str]:
  folder = CheckpointFolder(path)
  if folder.local is not None and folder.local.is_file():
    return CheckpointFolder(folder.local.parent), folder.local.name
  if folder.has(INDEX):
    return folder, INDEX
  parent, _, name = folder.name.rpartition("/")
  if folder.local is None and not parent.endswith("/"):
    return CheckpointFolder(parent), name
  return folder, INDEX


def _unpacked(raw: bytes, place: str) -> Any:
  if raw.startswith(_PICKLES):
    raise UserError(
      f"{place}: is a pickle, which can run any program when it is read; convert it to "
      "safetensors, and give the folder of those"
    )
  try:
    return msgpack.unpackb(raw, ext_hook=_Packed, raw=False)
  # What the library raises for damaged files: ValueError and its subclasses, or RecursionError
  # for nesting that is too deep.
  except Exception as error:
    raise UserError(
      f"{place}: is no msgpack of T5X's, or cut off ({type(error).__name__}: {error}); copy the "
      "checkpoint again"
    ) from None


def _target(tree: Any, place: str) -> Mapping[str, Any]:
  """Returns the branch with the weights."""
  version = tree.get("version", 0) if isinstance(tree, dict) else None
  if isinstance(version, int) and version > 3:
    raise UserError(f"{place}: has version {version}; versions up to 3 can be read")
  branch = tree
  for key in ("optimizer", "target"):
    if isinstance(branch, dict) and key in branch:
      branch = branch[key]
  if branch is tree or not isinstance(branch, dict) or not branch:
    raise UserError(
      f"{place}: holds no weights under optimizer/target, where T5X keeps them; give the "
      "checkpoint of a T5X model"
    )
  return branch


def _leaves(
  branch: Mapping[str, Any], path: tuple[str, ...], place: str
) -> Iterator[tuple[str, Any]]:
  for key, value in branch.items():
    if not isinstance(key, str) or "." in key or not key:
      raise UserError(
        f"{place}: the name {key!r:.60} under {'.'.join(path) or 'target'} is no weight's name; "
        "give another copy of the checkpoint"
      )
    if isinstance(value, dict) and not _is_spec(value) and _CHUNKED not in value:
      yield from _leaves(value, (*path, key), place)
    else:
      yield ".".join((*path, key)), value


def _is_spec(leaf: Any) -> bool:
  return isinstance(leaf, dict) and "driver" in leaf and "kvstore" in leaf


def _stored_arrays(
  folder: CheckpointFolder, specs: Mapping[str, Mapping[str, Any]], place: str
) -> dict[str, StoredArray]:
  """Opens the arrays that have their own folders beside the index."""
  if not specs:
    return {}
  names = {key: _folder_name(folder, key, spec, place) for key, spec in specs.items()}
  store = open_kvstore(folder.kvstore, folder.name)
  described = read_keys(store, [f"{name}/.zarray" for name in names.values()], folder.name)
  arrays = {}
  for (key, name), metadata in zip(names.items(), described, strict=True):
    kvstore = (folder / name).kvstore
    arrays[key] = zarr_array(kvstore, metadata, folder.name, key)
    declared = _declared_shape(specs[key])
    if declared != arrays[key].shape:
      raise UserError(
        f"{place}: says that the weight {key} is {declared}, but its .zarray says "
        f"{arrays[key].shape}; give another copy of the checkpoint"
      )
  return arrays


def _declared_shape(spec: Mapping[str, Any]) -> Any:
  metadata = spec.get("metadata")
  shape = metadata.get("shape") if isinstance(metadata, dict) else None
  return tuple(shape) if isinstance(shape, list) else shape


def _folder_name(folder: CheckpointFolder, key: str, spec: Mapping[str, Any], place: str) -> str:
  """Returns the name of a weight's folder; raises UserError if it is outside the checkpoint."""
  kvstore = spec["kvstore"]
  path = kvstore.get("path") if isinstance(kvstore, dict) else None
  if spec["driver"] != "zarr" or not isinstance(path, str):
    raise UserError(
      f"{place}: the weight {key} is kept by {spec['driver']!r:.40}, not zarr; give a checkpoint "
      "that T5X wrote"
    )
  name = path.rstrip("/")
  inside = name and "/" not in name and "\\" not in name and "\0" not in name
  inside = inside and name not in (".", "..")
  if inside and folder.local is not None:
    inside = (folder.local / name).resolve().parent == folder.local.resolve()
  if not inside:
    raise UserError(
      f"{place}: the weight {key} lies at {path!r:.80}, which leads out of the checkpoint's "
      "folder; do not trust this checkpoint"
    )
  return name


def _inline(leaf: Any, key: str, place: str) -> StoredArray:
  """Returns a weight that is in the msgpack itself, in one or several chunks."""
  try:
    if isinstance(leaf, dict):
      shape = tuple(leaf["shape"][str(i)] for i in range(len(leaf["shape"])))
      chunks = [_decoded(leaf["chunks"][str(i)]) for i in range(len(leaf["chunks"]))]
      return in_memory(np.concatenate([chunk.ravel() for chunk in chunks]).reshape(shape))
    return in_memory(_decoded(leaf))
  except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
    raise UserError(
      f"{place}: the weight {key} is no array of floats, or cut off ({error!s:.120}); copy the "
      "checkpoint again"
    ) from None


def _decoded(leaf: Any, dtypes: Mapping[str, np.dtype] = _DTYPES) -> np.ndarray:
  """Decodes flax's array: shape, name of the dtype, bytes."""
  if not isinstance(leaf, _Packed) or leaf.code != _NDARRAY:
    raise ValueError(f"{str(leaf)[:40]} stands in its place")
  shape, dtype_name, data = msgpack.unpackb(leaf.data, raw=False)
  dtype = dtypes[dtype_name]
  if not all(type(size) is int and size >= 0 for size in shape):
    raise ValueError(f"{shape} is no shape")
  if math.prod(shape) * dtype.itemsize != len(data):
    raise ValueError(f"shape {tuple(shape)} declared for {len(data)} bytes")
  return np.frombuffer(data, dtype).reshape(shape)


def newest_step(folder: pathlib.Path) -> pathlib.Path | None:
  """Returns the checkpoint_<step> of the largest step in a T5X MODEL_DIR; None if there is none."""
  steps = {
    int(entry.name.removeprefix("checkpoint_")): entry
    for entry in folder.iterdir()
    if entry.name.startswith("checkpoint_") and entry.name[len("checkpoint_") :].isdecimal()
  }
  return steps[max(steps)] if steps else None
