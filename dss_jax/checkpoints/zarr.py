"""Writing weights as zarr arrays, with one chunk in memory at a time."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from dss_jax.checkpoints.arrays import Index, StoredArray
from dss_jax.storage.atomic import writing

# The size of T5X's largest chunks.
CHUNK_BYTES = 64 * 2**20
_ZARR_DTYPES = {"float32": "<f4", "bfloat16": "bfloat16", "int32": "<i4"}


def write_zarr(
  kvstore: Mapping[str, Any],
  array: StoredArray,
  dtype: np.dtype,
  compressor: Mapping[str, Any],
  place: str,
) -> tuple[int, ...]:
  """Writes the array, cast to dtype, into a new zarr (version 2) array; returns its chunk shape.

  Args:
    kvstore: tensorstore's specification of its location.
    place: the beginning of errors.

  Raises:
    UserError: it cannot be written. What reading the array raises passes through.
  """
  chunks = chunk_shape(array.shape, dtype.itemsize)
  spec = {
    "driver": "zarr",
    "kvstore": dict(kvstore),
    "metadata": {
      "zarr_format": 2,
      "shape": list(array.shape),
      "chunks": list(chunks),
      "dtype": _ZARR_DTYPES[dtype.name],
      "order": "C",
      "fill_value": None,
      "filters": None,
      "compressor": dict(compressor),
      "dimension_separator": ".",
    },
    # Chunks of zeros are stored too, so that a missing chunk is an error.
    "store_data_equal_to_fill_value": True,
  }
  # TensorStore raises exceptions of several types.
  with writing(place, Exception):
    store = ts.open(spec, create=True).result()
  for index in blocks(array.shape, chunks):
    part = np.asarray(array.read(index)).astype(dtype)
    with writing(place, Exception):
      store[index].write(part).result()
  return chunks


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
  """Returns the array's shape with its first dimensions reduced to CHUNK_BYTES at most."""
  chunks = list(shape)
  for axis, size in enumerate(shape):
    rest = math.prod(chunks[:axis]) * math.prod(chunks[axis + 1 :]) * itemsize
    if rest * size <= CHUNK_BYTES:
      break
    chunks[axis] = max(1, CHUNK_BYTES // rest)
  return tuple(chunks)


def blocks(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[Index]:
  """Yields the index of each chunk, in row-major order."""
  ranges = [
    [slice(start, min(start + chunk, size)) for start in range(0, size, chunk)]
    for size, chunk in zip(shape, chunks, strict=True)
  ]
  yield from itertools.product(*ranges)
