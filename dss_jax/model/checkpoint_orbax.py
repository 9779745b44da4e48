"""Reading Orbax's folders of arrays: T5X's newer checkpoints, and a student's own.

The arrays are zarr, one for each weight, in an OCDBT key-value store or in folders of their
own. They are read through tensorstore alone: Orbax's metadata files decide on nothing.
"""

import os

from dss_jax.errors import UserError
from dss_jax.model.checkpoint_folder import (
  CheckpointFolder,
  open_kvstore,
  read_keys,
  why,
  zarr_array,
)
from dss_jax.model.scanned_layers import unstacked
from dss_jax.model.stored_arrays import StoredArrays

STATE = "state"
MANIFEST = "manifest.ocdbt"
_DESCRIPTION = "/.zarray"
_LIST_SECONDS = 120.0


def read_t5x_orbax(path: str | os.PathLike[str]) -> StoredArrays:
  """The weights of T5X's Orbax checkpoint by name, none of them read yet.

  Args:
    path: the folder of the step, or the folder `state` in it; local or a URL.

  Raises:
    UserError: the folder holds no readable weights.
  """
  folder = CheckpointFolder(path)
  if not is_array_folder(folder):
    folder = folder / STATE
  return unstacked(read_arrays(folder, "target."), folder.name)


def is_array_folder(folder: CheckpointFolder) -> bool:
  return folder.has(MANIFEST) or folder.has("_METADATA")


def read_arrays(folder: CheckpointFolder, beginning: str = "") -> StoredArrays:
  """The arrays whose names begin so, by the rest of their names.

  Raises:
    UserError: there are none, or one is no array of floats.
  """
  ocdbt = folder.has(MANIFEST)
  base = {"driver": "ocdbt", "base": folder.kvstore} if ocdbt else folder.kvstore
  store = open_kvstore(base, folder.name)
  try:
    keys = [key.decode() for key in store.list().result(_LIST_SECONDS)]
  except Exception as error:
    raise UserError(
      f"{folder.name}: its arrays cannot be listed ({why(error)}); the "
      "checkpoint is damaged, so copy it again"
    ) from None
  names = sorted(
    key.removesuffix(_DESCRIPTION)
    for key in keys
    if key.startswith(beginning) and key.endswith(_DESCRIPTION)
  )
  if not names:
    raise UserError(
      f"{folder.name}: holds no zarr arrays whose names begin with {beginning!r}; give the folder "
      "of a T5X checkpoint, checkpoint_<step>"
    )
  described = read_keys(store, [name + _DESCRIPTION for name in names], folder.name)
  arrays = {}
  for name, metadata in zip(names, described, strict=True):
    path = f"{name}/" if ocdbt else f"{base['path']}{name}/"
    weight = name.removeprefix(beginning)
    arrays[weight] = zarr_array({**base, "path": path}, metadata, folder.name, weight)
  return arrays
