"""Writing weights as zarr arrays, chunk by chunk: never more than a chunk is held."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from dss_jax.checkpoints.arrays import Index, StoredArray
from dss_jax.storage.atomic import writing

# As large as T5X's own chunks get.
CHUNK_BYTES = 64 * 2**20
_ZARR_DTYPES = {"float32": "<f4", "bfloat16": "bfloat16", "int32": "<i4"}


def write_zarr(
  kvstore: Mapping[str, Any],
  array: StoredArray,
  dtype: np.dtype,
  compressor: Mapping[str, Any],
  place: str,
) -> tuple[int, ...]:
  """Writes the array, cast to dtype, into a new zarr (version 2) array; its chunk shape.

  Args:
    kvstore: tensorstore's specification of where it goes.
    place: what errors begin with.

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
    # A chunk of zeros that is not there could not be told from one that got lost.
    "store_data_equal_to_fill_value": True,
  }
  # TensorStore reports what it cannot write by exceptions of several types.
  with writing(place, Exception):
    store = ts.open(spec, create=True).result()
  for index in blocks(array.shape, chunks):
    part = np.asarray(array.read(index)).astype(dtype)
    with writing(place, Exception):
      store[index].write(part).result()
  return chunks


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
  """The shape with its first dimensions cut until a chunk has CHUNK_BYTES at most."""
  chunks = list(shape)
  for axis, size in enumerate(shape):
    rest = math.prod(chunks[:axis]) * math.prod(chunks[axis + 1 :]) * itemsize
    if rest * size <= CHUNK_BYTES:
      break
    chunks[axis] = max(1, CHUNK_BYTES // rest)
  return tuple(chunks)


def blocks(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[Index]:
  """The index of each chunk, in the order in which the array lies in memory."""
  ranges = [
    [slice(start, min(start + chunk, size)) for start in range(0, size, chunk)]
    for size, chunk in zip(shape, chunks, strict=True)
  ]
  yield from itertools.product(*ranges)
