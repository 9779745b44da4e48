"""T5X's scanned models: the layers of a stack are one array, stacked along axis 1.

Their attention kernels have separate dimensions for heads and head_dim, and each layer has its
own relative position bias: `encoder.encoder.attention.query.kernel` is [embed, layers, heads,
head_dim]. Ours are
`encoder.layers_0.attention.query.kernel`, [embed, heads * head_dim], and so on.
"""

from collections.abc import Callable

from dss_jax.checkpoints.arrays import StoredArray, StoredArrays
from dss_jax.errors import UserError

_STACKS = ("encoder", "decoder")
_LAYER_AXIS = 1


def unrolled_arrays(
  arrays: StoredArrays,
  place: str,
  layer_axis: Callable[[str], int] = lambda weight: _LAYER_AXIS,
) -> dict[str, StoredArray]:
  """Splits each scanned array into its layers; other weights are unchanged.

  Args:
    layer_axis: the axis of layers of an array by its name within the stack, such as
      "attention.query.kernel".

  Raises UserError, beginning with `place`, for a scanned array without a layer axis, or with
  another number of layers than its stack's first.
  """
  result = {}
  layers: dict[str, tuple[str, int]] = {}
  for name, array in arrays.items():
    stack, _, rest = name.partition(".")
    inner, _, weight = rest.partition(".")
    if stack not in _STACKS or inner != stack:
      result[name] = array
      continue
    axis = layer_axis(weight)
    if len(array.shape) < 2:
      raise UserError(
        f"{place}: the weight {name} of shape {array.shape} has no axis of layers, as the scanned "
        "weights around it do; give another copy of the checkpoint"
      )
    count = array.shape[axis]
    first, expected = layers.setdefault(stack, (name, count))
    if count != expected:
      raise UserError(
        f"{place}: the weight {name} has {count} layers, but {first} has {expected}; give another "
        "copy of the checkpoint"
      )
    # Bounded, since every layer becomes an entry of its own.
    if count > 10_000:
      raise UserError(f"{place}: the weight {name} declares {count:,} layers; 10,000 is the most")
    for layer in range(count):
      one = array.taken(axis, layer)
      result[f"{stack}.layers_{layer}.{weight}"] = _heads_joined(weight, one)
  return result


def _heads_joined(weight: str, array: StoredArray) -> StoredArray:
  module, _, leaf = weight.rpartition(".")
  if len(array.shape) != 3 or leaf != "kernel":
    return array
  return array.joined(0 if module.endswith(".out") else 1)
