"""Reading Orbax's folders of arrays: T5X's newer checkpoints, and a student's own.

Each weight is a zarr array, in an OCDBT key-value store or in its own folder. They are read with
tensorstore alone; Orbax's metadata files are not used.
"""

import os
from collections.abc import Mapping

import numpy as np

from dss_jax.checkpoints.adafactor_moments import NO_STATE, StoredMoments, moments_of
from dss_jax.checkpoints.arrays import StoredArrays
from dss_jax.checkpoints.folder import (
  FLOATS_BY_ZARR,
  CheckpointFolder,
  open_kvstore,
  read_keys,
  zarr_array,
)
from dss_jax.checkpoints.scanned_layers import unrolled_arrays
from dss_jax.errors import UserError
from dss_jax.storage.files import reason

STATE = "state"
MANIFEST = "manifest.ocdbt"
_DESCRIPTION = "/.zarray"
_LIST_SECONDS = 120.0
_MOMENTS = "state.param_states."
_STEP = "state.step"
_INTEGERS: dict[str, np.dtype] = {"<i4": np.dtype(np.int32), "<i8": np.dtype(np.int64)}


def read_t5x_orbax(path: str | os.PathLike[str]) -> StoredArrays:
  """Returns the weights of T5X's Orbax checkpoint by name, not read yet.

  Args:
    path: the folder of the step, or the folder `state` in it; local or a URL.

  Raises:
    UserError: the folder has no readable weights.
  """
  folder = _array_folder(path)
  return unrolled_arrays(read_arrays(folder, "target."), folder.name)


def read_t5x_orbax_moments(path: str | os.PathLike[str]) -> StoredMoments:
  """Returns Adafactor's moments in T5X's Orbax checkpoint, not read yet.

  Raises:
    UserError: the folder has only weights, or nothing readable.
  """
  folder = _array_folder(path)
  arrays = read_arrays(folder, _MOMENTS, if_none=NO_STATE)
  step = read_arrays(folder, _STEP, _INTEGERS)[""].whole()
  return moments_of(arrays, step, folder.name)


def _array_folder(path: str | os.PathLike[str]) -> CheckpointFolder:
  folder = CheckpointFolder(path)
  return folder if is_array_folder(folder) else folder / STATE


def is_array_folder(folder: CheckpointFolder) -> bool:
  return folder.has(MANIFEST) or folder.has("_METADATA")


def read_arrays(
  folder: CheckpointFolder,
  beginning: str = "",
  dtypes: Mapping[str, np.dtype] = FLOATS_BY_ZARR,
  if_none: str | None = None,
) -> StoredArrays:
  """Returns the arrays whose names have the prefix, by the rest of their names.

  Args:
    if_none: the error, after the folder's name, if there are none.

  Raises:
    UserError: there are none, or one has none of the dtypes.
  """
  ocdbt = folder.has(MANIFEST)
  base = {"driver": "ocdbt", "base": folder.kvstore} if ocdbt else folder.kvstore
  store = open_kvstore(base, folder.name)
  try:
    keys = [key.decode() for key in store.list().result(_LIST_SECONDS)]
  except Exception as error:
    raise UserError(
      f"{folder.name}: its arrays cannot be listed ({reason(error)}); the "
      "checkpoint is damaged, so copy it again"
    ) from None
  names = sorted(
    key.removesuffix(_DESCRIPTION)
    for key in keys
    if key.startswith(beginning) and key.endswith(_DESCRIPTION)
  )
  if not names:
    none = if_none or (
      f"holds no zarr arrays whose names begin with {beginning!r}; give the folder of a T5X "
      "checkpoint, checkpoint_<step>"
    )
    raise UserError(f"{folder.name}: {none}")
  described = read_keys(store, [name + _DESCRIPTION for name in names], folder.name)
  arrays = {}
  for name, metadata in zip(names, described, strict=True):
    path = f"{name}/" if ocdbt else f"{base['path']}{name}/"
    weight = name.removeprefix(beginning)
    arrays[weight] = zarr_array({**base, "path": path}, metadata, folder.name, weight, dtypes)
  return arrays
