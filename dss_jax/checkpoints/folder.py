"""A checkpoint's folder, local or in a bucket, and the zarr arrays in it."""

import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from dss_jax.checkpoints.arrays import BFLOAT16, Index, StoredArray
from dss_jax.errors import UserError
from dss_jax.storage.files import is_url, reason

# The timeout for a bucket that does not answer.
_ANSWER_SECONDS = 60.0
_ARRAY_SECONDS = 3600.0
_METADATA_BYTES = 2**16
_MOST_DIMENSIONS = 8
# The cache of decoded chunks, at least one of the largest, since devices share chunks.
_CONTEXT = ts.Context(
  {
    "cache_pool": {"total_bytes_limit": 5 * 2**24},
    "gcs_request_retries": {"max_retries": 4},
  }
)
# Version 2 of T5X's format stored bfloat16 as unsigned integers of the same bits.
FLOATS_BY_ZARR = {
  "<f4": np.dtype(np.float32),
  "<f2": np.dtype(np.float16),
  "<f8": np.dtype(np.float64),
  "bfloat16": BFLOAT16,
  "<u2": BFLOAT16,
}
_COMPRESSORS = {None, "gzip", "zlib", "zstd", "blosc", "bz2"}


class CheckpointFolder:
  """A folder whose files are read whole (`read`) or as arrays (`array`)."""

  def __init__(self, path: str | os.PathLike[str]):
    """Raises UserError for a URL whose scheme is not supported."""
    text = os.fspath(path)
    self.local = None if is_url(text) else pathlib.Path(text).absolute()
    self.name = text.rstrip("/") or "/"
    self.kvstore = _kvstore(self.name) if self.local is None else _file_kvstore(self.local)

  def __truediv__(self, name: str) -> "CheckpointFolder":
    return CheckpointFolder(f"{self.name}/{name}" if self.local is None else self.local / name)

  def read(self, name: str, limit_bytes: int = 2**30) -> bytes | None:
    """Returns the bytes of a file; None if it does not exist.

    Raises UserError if it cannot be read or is larger than the limit.
    """
    place = f"{self.name}/{name}"
    if self.local is None:
      content = read_keys(ts.KvStore.open(self.kvstore, context=_CONTEXT), [name], self.name)[0]
      size = len(content or b"")
    else:
      path = self.local / name
      if not path.is_file():
        return None
      size = path.stat().st_size
    if size > limit_bytes:
      raise UserError(
        f"{place}: has {size:,} bytes, more than the {limit_bytes:,} that such a file may have; "
        "give another copy of the checkpoint"
      )
    if self.local is None:
      return content
    try:
      return path.read_bytes()
    except OSError as error:
      raise UserError(
        f"{place}: cannot be read ({reason(error)}); give a checkpoint that you may read"
      ) from None

  def has(self, name: str) -> bool:
    """Returns whether a file exists."""
    if self.local is not None:
      return (self.local / name).is_file()
    return self.read(name) is not None


def _file_kvstore(path: pathlib.Path) -> dict[str, Any]:
  return {"driver": "file", "path": f"{path}/"}


def _kvstore(url: str) -> dict[str, Any]:
  scheme, _, rest = url.partition("://")
  bucket, _, path = rest.partition("/")
  path = f"{path}/" if path else ""
  if scheme == "file":
    return {"driver": "file", "path": f"/{path}"}
  if scheme in ("gs", "gcs"):
    return {"driver": "gcs", "bucket": bucket, "path": path}
  if scheme == "s3":
    return {"driver": "s3", "bucket": bucket, "path": path}
  if scheme in ("http", "https"):
    return {"driver": "http", "base_url": f"{url}/"}
  raise UserError(
    f"{url}: weights are not read from {scheme}://; copy the folder to this machine, or give a "
    "gs://, s3:// or https:// address"
  )


def open_kvstore(spec: dict[str, Any], place: str) -> Any:
  """Opens the key-value store. Raises UserError if it cannot be opened."""
  try:
    return ts.KvStore.open(spec, context=_CONTEXT).result(_ANSWER_SECONDS)
  except Exception as error:
    raise _unreachable(place, error) from None


def read_keys(store: Any, keys: list[str], place: str) -> list[bytes | None]:
  """Returns the values of the keys, read concurrently; None for a missing one.

  Raises UserError if the store cannot be read.
  """
  try:
    opened = store.result(_ANSWER_SECONDS) if hasattr(store, "result") else store
    futures = [opened.read(key) for key in keys]
    results = [future.result(_ANSWER_SECONDS) for future in futures]
  except Exception as error:
    raise _unreachable(place, error) from None
  return [result.value if result.state == "value" else None for result in results]


def _unreachable(place: str, error: Exception) -> UserError:
  return UserError(
    f"{place}: cannot be read ({reason(error)}); check the address and that you may read it, or "
    "copy the folder to this machine"
  )


def zarr_array(
  kvstore: dict[str, Any],
  metadata: bytes | None,
  place: str,
  name: str,
  dtypes: Mapping[str, np.dtype] = FLOATS_BY_ZARR,
) -> StoredArray:
  """Opens a zarr (version 2) array in a key-value store: checked, but not read yet.

  Args:
    kvstore: tensorstore's specification of the array's location; ours, never the file's.
    metadata: the content of its `.zarray`.
    place: the checkpoint, which errors begin with.
    name: the weight's name in errors.
    dtypes: the allowed ones, by zarr's names; by default floats.

  Raises:
    UserError: another dtype, or chunks larger than the array, as only a malicious file has.
  """
  shape, dtype = _checked_metadata(metadata, place, name, dtypes)

  @functools.cache
  def store() -> Any:
    spec = {
      "driver": "zarr",
      "kvstore": kvstore,
      "recheck_cached_data": False,
      # A missing chunk would be read as zeros.
      "fill_missing_data_reads": False,
    }
    return ts.open(spec, read=True, open=True, context=_CONTEXT).result(_ANSWER_SECONDS)

  def read(index: Index) -> np.ndarray:
    try:
      opened = store()
      if tuple(opened.shape) != shape:
        raise ValueError(f"its shape is no longer {shape}")
      part = np.asarray(opened[index].read().result(_ARRAY_SECONDS))
    except Exception as error:
      raise UserError(
        f"{place}: the weight {name} cannot be read ({reason(error)}); the checkpoint is damaged "
        "or incomplete, so copy it again"
      ) from None
    return part.view(BFLOAT16) if part.dtype == np.uint16 else part

  return StoredArray(shape, dtype, read)


def _checked_metadata(
  metadata: bytes | None, place: str, name: str, dtypes: Mapping[str, np.dtype]
) -> tuple[tuple[int, ...], np.dtype]:
  if metadata is None:
    raise UserError(
      f"{place}: the weight {name} has no .zarray; the checkpoint is incomplete, so copy it again"
    )
  try:
    if len(metadata) > _METADATA_BYTES:
      raise ValueError("it is too long")
    fields = json.loads(metadata)
    shape, chunks = _sizes(fields["shape"]), _sizes(fields["chunks"])
    compressor = (fields["compressor"] or {"id": None})["id"]
    if fields["zarr_format"] != 2 or fields["filters"] or compressor not in _COMPRESSORS:
      raise ValueError("its encoding is unknown")
    dtype = dtypes[fields["dtype"]]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(
      f"{place}: the .zarray of the weight {name} describes no array of floats ({reason(error)}); "
      "give another copy of the checkpoint"
    ) from None
  if len(chunks) != len(shape) or any(
    chunk > max(size, 1) for chunk, size in zip(chunks, shape, strict=True)
  ):
    raise UserError(
      f"{place}: the weight {name} of shape {shape} declares chunks of {chunks}; a chunk is no "
      "larger than its array, so give another copy of the checkpoint"
    )
  return shape, dtype


def _sizes(value: Any) -> tuple[int, ...]:
  if not isinstance(value, list) or len(value) > _MOST_DIMENSIONS:
    raise ValueError(f"{str(value)[:50]} is no shape")
  if not all(type(size) is int and 0 <= size < 2**62 for size in value):
    raise ValueError(f"{str(value)[:50]} is no shape")
  return tuple(value)
