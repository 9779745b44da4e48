"""Weights on disk, in any format: named arrays that are read shard by shard onto a mesh."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import linen as nn

from dss_jax.config.schema import T5Config
from dss_jax.errors import UserError
from dss_jax.model.attention import RelativePositionBias
from dss_jax.model.layer_stacks import is_scanned, stacked, unrolled_config
from dss_jax.model.t5 import init_params

# A part of an array: a slice with start and stop for each dimension.
Index = tuple[slice, ...]
Shapes = Mapping[str, tuple[int, ...]]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = {
  "float32": np.dtype(np.float32),
  "float16": np.dtype(np.float16),
  "bfloat16": BFLOAT16,
  "float64": np.dtype(np.float64),
}


@dataclasses.dataclass(frozen=True)
class StoredArray:
  """An array on disk. `read` returns the part at an index; only that part is in memory."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[Index], np.ndarray]

  @property
  def size(self) -> int:
    """The number of elements."""
    return math.prod(self.shape)

  def whole(self) -> np.ndarray:
    return self.read(tuple(slice(0, size) for size in self.shape))

  def transposed(self) -> "StoredArray":
    """Returns the transposed matrix."""
    rows, columns = self.shape
    return StoredArray((columns, rows), self.dtype, lambda index: self.read(index[::-1]).T)

  def taken(self, axis: int, position: int) -> "StoredArray":
    """Returns the slice at a position of an axis, without that axis."""
    shape = (*self.shape[:axis], *self.shape[axis + 1 :])

    def read(index: Index) -> np.ndarray:
      whole = (*index[:axis], slice(position, position + 1), *index[axis:])
      return np.squeeze(self.read(whole), axis)

    return StoredArray(shape, self.dtype, read)

  def joined(self, axis: int) -> "StoredArray":
    """Returns the array with dimensions `axis` and `axis + 1` merged."""
    slow, fast = self.shape[axis : axis + 2]
    shape = (*self.shape[:axis], slow * fast, *self.shape[axis + 2 :])

    def read(index: Index) -> np.ndarray:
      start, stop = index[axis].start, index[axis].stop
      first = start // fast
      blocks = slice(first, -(-stop // fast))
      part = self.read((*index[:axis], blocks, slice(0, fast), *index[axis + 1 :]))
      part = part.reshape(*part.shape[:axis], -1, *part.shape[axis + 2 :])
      within = slice(start - first * fast, stop - first * fast)
      return part[(*[slice(None)] * axis, within)]

    return StoredArray(shape, self.dtype, read)

  def layers(self) -> list["StoredArray"]:
    """Returns the slices along the first axis."""
    return [self.taken(0, position) for position in range(self.shape[0])]


def layers_stacked(layers: list[StoredArray]) -> StoredArray:
  """Stacks arrays of one shape along a new first axis."""
  first = layers[0]

  def read(index: Index) -> np.ndarray:
    return np.stack([layer.read(index[1:]) for layer in layers[index[0]]])

  return StoredArray((len(layers), *first.shape), first.dtype, read)


def in_memory(array: np.ndarray) -> StoredArray:
  return StoredArray(array.shape, array.dtype, lambda index: array[index])


StoredArrays = Mapping[str, StoredArray]


def shapes_of(arrays: StoredArrays) -> dict[str, tuple[int, ...]]:
  return {name: array.shape for name, array in arrays.items()}


def model_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each weight of a student by its dotted name, with layers unrolled.

  Checkpoints are compared in this layout.
  """
  config = unrolled_config(config)
  boxed = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
  return {
    weight_name(path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(nn.meta.unbox(boxed))
  }


def weight_name(path: Any) -> str:
  """Returns the dotted name of a JAX key path: `encoder.layers_0.mlp.wo.kernel`."""
  return ".".join(key.key for key in path)


def first_difference(theirs: Shapes, ours: Shapes) -> tuple[str, str, str] | None:
  """Returns the first weight, by name, whose shapes differ, with both; None if all agree."""
  for name in sorted({*theirs, *ours}):
    if theirs.get(name) != ours.get(name):
      return name, str(theirs.get(name, "absent")), str(ours.get(name, "no such weight"))
  return None


def lay_out(arrays: StoredArrays, shape: Any) -> Any:
  """Reads the weights into a tree like `shape` (ShapeDtypeStructs with shardings).

  Each shard is read separately, so a host needs no more memory than its devices' shards and one
  weight. Weights are cast to the tree's dtype, and layers are stacked if the tree is scanned.

  Raises UserError if a part cannot be read.
  """
  if is_scanned(shape):
    arrays = stacked(arrays, layers_stacked)

  def place(path: Any, leaf: Any) -> jax.Array:
    stored = arrays[weight_name(path)]
    assert stored.shape == leaf.shape, (weight_name(path), stored.shape, leaf.shape)
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def part(index: Index | None) -> np.ndarray:
      assert index is not None
      bounds = tuple(one.indices(size)[:2] for one, size in zip(index, leaf.shape, strict=True))
      # Devices along the mesh's data axis have the same part.
      if bounds not in parts:
        read = stored.read(tuple(slice(*pair) for pair in bounds))
        parts[bounds] = np.ascontiguousarray(read, dtype=leaf.dtype)
      return parts[bounds]

    placed = jax.make_array_from_callback(leaf.shape, leaf.sharding, part)
    # Otherwise the shards of many weights would wait for their transfer in host memory.
    return placed.block_until_ready()

  return jax.tree_util.tree_map_with_path(place, shape)


def architecture(shapes: Shapes, place: str) -> T5Config:
  """Returns the student's configuration, as far as the shapes of its weights determine it.

  Raises UserError, beginning with `place`, if they are not a T5's.
  """

  def size(name: str, axis: int) -> int:
    if name not in shapes or len(shapes[name]) != 2:
      raise UserError(
        f"{place}: has no matrix {name}, so these are not the weights of an encoder-decoder T5; "
        "give the checkpoint of a T5, mT5, ByT5 or Flan-T5"
      )
    return shapes[name][axis]

  def layers(stack: str) -> int:
    beginning = f"{stack}.layers_"
    numbers = {
      name.removeprefix(beginning).split(".")[0] for name in shapes if name.startswith(beginning)
    }
    return len(numbers)

  shared = "encoder.relpos_bias.rel_embedding" in shapes
  bias = "encoder.relpos_bias" if shared else "encoder.layers_0.relpos_bias"
  heads = size(f"{bias}.rel_embedding", 0)
  joined = size("encoder.layers_0.attention.query.kernel", 1)
  gated = "encoder.layers_0.mlp.wi_0.kernel" in shapes
  buckets = size(f"{bias}.rel_embedding", 1)
  if buckets != RelativePositionBias.num_buckets:
    raise UserError(
      f"{place}: its relative position bias has {buckets} buckets, but a student has "
      f"{RelativePositionBias.num_buckets}; choose another checkpoint"
    )
  # An encoder-only model has no such weight.
  size("decoder.layers_0.self_attention.query.kernel", 1)
  if min(heads, joined) < 1 or joined % heads:
    raise UserError(
      f"{place}: {heads} heads do not divide the {joined} columns of "
      "encoder.layers_0.attention.query.kernel; give another copy of the checkpoint"
    )
  return T5Config(
    emb_dim=size("token_embedder.embedding", 1),
    num_heads=heads,
    head_dim=joined // heads,
    mlp_dim=size("encoder.layers_0.mlp.wo.kernel", 0),
    num_encoder_layers=layers("encoder"),
    num_decoder_layers=layers("decoder"),
    vocab_size=size("token_embedder.embedding", 0),
    mlp_activations=("gelu", "linear") if gated else ("relu",),
    logits_via_embedding="decoder.logits_dense.kernel" not in shapes,
    shared_relpos_bias=shared,
  )
