"""Writing checkpoints that T5X's own loaders read: its native format and its Orbax layout.

Only weights and step are written: the optimizer's state starts fresh. T5X's loader crashes on an
empty `param_states`, so that is left out.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np

from dss_jax.checkpoints.arrays import StoredArrays, in_memory
from dss_jax.checkpoints.orbax import STATE
from dss_jax.checkpoints.t5x_read import INDEX
from dss_jax.checkpoints.zarr import write_zarr
from dss_jax.storage.atomic import publishing, write_bytes, writing

_VERSION = 3
_NDARRAY = 1
_GZIP = {"id": "gzip", "level": 1}
_ZSTD = {"id": "zstd", "level": 1}
_HANDLERS = {
  "dataset": "t5x.checkpoints.DatasetCheckpointHandler",
  "state": "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler",
}
_DICT_KEY = 2  # Orbax's code of a dictionary key
_COMMITTED = "Checkpoint commit was successful"


def write_t5x(
  arrays: StoredArrays, folder: str | os.PathLike[str], *, step: int, dtype: np.dtype
) -> pathlib.Path:
  """Writes `checkpoint_<step>` in T5X's native format, version 3; returns its path.

  It appears under its name when complete. One chunk is in memory at a time.

  Raises:
    UserError: it cannot be written, or a weight cannot be read.
  """
  with _step_folder(folder, step) as part:
    target: dict[str, Any] = {}
    for name, array in sorted(arrays.items()):
      path = f"target.{name}/"
      kvstore = {"driver": "file", "path": f"{part / path}/"}
      chunks = write_zarr(kvstore, array, dtype, _GZIP, str(part / path))
      leaf = {
        "driver": "zarr",
        "dtype": dtype.name,
        "kvstore": {"driver": "file", "path": path},
        "metadata": {
          "chunks": list(chunks),
          "compressor": _GZIP,
          "shape": list(array.shape),
        },
      }
      *parents, last = name.split(".")
      branch = target
      for key in parents:
        branch = branch.setdefault(key, {})
      branch[last] = leaf
    number = msgpack.ExtType(
      _NDARRAY, msgpack.packb(([], "int32", np.int32(step).tobytes()), use_bin_type=True)
    )
    tree = {"version": _VERSION, "optimizer": {"state": {"step": number}, "target": target}}
    write_bytes(part / INDEX, msgpack.packb(tree, use_bin_type=True))
  return pathlib.Path(folder) / f"checkpoint_{step}"


def write_t5x_orbax(
  arrays: StoredArrays, folder: str | os.PathLike[str], *, step: int, dtype: np.dtype
) -> pathlib.Path:
  """Writes `checkpoint_<step>` in the layout of T5X's Orbax checkpointer; returns its path.

  Raises:
    UserError: it cannot be written, or a weight cannot be read.
  """
  with _step_folder(folder, step) as part:
    state = part / STATE
    state.mkdir()
    base = {"driver": "file", "path": f"{state}/"}
    counter = in_memory(np.asarray(step, np.int32))
    leaves = [("state.step", counter, np.dtype(np.int32))]
    leaves += [(f"target.{name}", array, dtype) for name, array in sorted(arrays.items())]
    described = {}
    for name, array, leaf_dtype in leaves:
      kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
      write_zarr(kvstore, array, leaf_dtype, _ZSTD, f"{state}/{name}")
      keys = tuple(name.split("."))
      described[str(keys)] = {
        "key_metadata": [{"key": key, "key_type": _DICT_KEY} for key in keys],
        "value_metadata": {
          # Not jax.Array, whose restoring needs the devices that it was on.
          "value_type": "np.ndarray",
          "skip_deserialize": False,
          "write_shape": list(array.shape),
        },
      }
    metadata = {
      "tree_metadata": described,
      "use_ocdbt": True,
      "use_zarr3": False,
      "store_array_data_equal_to_fill_value": True,
      "custom_metadata": None,
    }
    write_bytes(state / "_METADATA", json.dumps(metadata).encode())
    now = time.time_ns()
    about = {
      "item_handlers": _HANDLERS,
      "metrics": {},
      "performance_metrics": {},
      "init_timestamp_nsecs": now,
      "commit_timestamp_nsecs": now,
      "custom_metadata": {},
    }
    write_bytes(part / "_CHECKPOINT_METADATA", json.dumps(about).encode())
    (part / "dataset").mkdir()
    for place in (part, part / "dataset", state):
      write_bytes(place / "commit_success.txt", _COMMITTED.encode())
  return pathlib.Path(folder) / f"checkpoint_{step}"


@contextlib.contextmanager
def _step_folder(folder: str | os.PathLike[str], step: int) -> Iterator[pathlib.Path]:
  """Yields a folder to write into, which becomes checkpoint_<step> if the body succeeds."""
  final = pathlib.Path(folder) / f"checkpoint_{step}"
  with writing(final), publishing(final) as part:
    yield part
