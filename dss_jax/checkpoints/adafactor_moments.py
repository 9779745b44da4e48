"""The second moments of T5X's Adafactor in a checkpoint."""

import dataclasses

import numpy as np

from dss_jax.checkpoints.arrays import StoredArray, StoredArrays
from dss_jax.checkpoints.scanned_layers import unrolled_arrays
from dss_jax.errors import UserError

# The error for a checkpoint without moments.
NO_STATE = (
  "holds the weights alone, no state of Adafactor; leave out --initial-optimizer-state, or give "
  "a checkpoint of T5X's own training"
)
_PLACEHOLDER = (1,)


@dataclasses.dataclass(frozen=True)
class StoredMoments:
  """Adafactor's moments on disk, in the layout of unrolled layers.

  Attributes:
    step: the number of updates that they include.
    v: the moment of each weight that is not factored, in its shape.
    v_row: of each factored weight, the mean over its longest dimension.
    v_col: of each factored weight, the mean over its other dimension.
    has_momentum: whether there is also a first moment, which is not read.
  """

  step: int
  v: StoredArrays
  v_row: StoredArrays
  v_col: StoredArrays
  has_momentum: bool


def moments_of(arrays: StoredArrays, step: np.ndarray, place: str) -> StoredMoments:
  """Returns the moments in T5X's `param_states`: arrays `<weight>.<v, v_row, v_col or m>`.

  T5X factors a matrix by its lengths, but a matrix of a scanned stack into the model's width,
  which is `v_row`, and the rest; those are converted to what the layer alone would have.

  Raises UserError, beginning with `place`, for other arrays.
  """
  kinds: dict[str, dict[str, StoredArray]] = {"v": {}, "v_row": {}, "v_col": {}, "m": {}}
  for name, array in arrays.items():
    weight, _, kind = name.rpartition(".")
    if kind not in kinds:
      raise UserError(
        f"{place}: the optimizer's {name} is no moment of Adafactor; leave out "
        "--initial-optimizer-state"
      )
    # A moment that a weight does not have is stored as one number.
    if array.shape != _PLACEHOLDER:
      kinds[kind][weight] = array
  if step.shape != () or step < 0:
    raise UserError(
      f"{place}: the optimizer's step is {step.tolist()!s:.60}, no count; give another copy of "
      "the checkpoint"
    )
  rows = unrolled_arrays(kinds["v_row"], place, lambda weight: 0 if _embed_is_last(weight) else 1)
  columns = unrolled_arrays(
    kinds["v_col"], place, lambda weight: 1 if _embed_is_last(weight) else 0
  )
  for name in rows.keys() & columns.keys() - kinds["v_row"].keys():
    rows[name], columns[name] = _by_length(name, rows[name], columns[name])
  return StoredMoments(
    step=int(step),
    v=unrolled_arrays(kinds["v"], place),
    v_row=rows,
    v_col=columns,
    has_momentum=bool(kinds["m"]),
  )


def _embed_is_last(weight: str) -> bool:
  return weight.endswith((".out.kernel", ".wo.kernel"))


def _by_length(name: str, width: StoredArray, rest: StoredArray) -> tuple[StoredArray, StoredArray]:
  """Returns the two moments of a layer's matrix, the mean over the longest dimension first."""
  if len(rest.shape) == 2:  # [heads, head_dim], two dimensions.
    rest = rest.joined(0)
  lengths = (*rest.shape, *width.shape) if _embed_is_last(name) else (*width.shape, *rest.shape)
  # Of two equally long dimensions, optax and T5X both take the later one.
  width_is_longest = int(np.argsort(lengths)[-1]) == (1 if _embed_is_last(name) else 0)
  return (rest, width) if width_is_longest else (width, rest)
