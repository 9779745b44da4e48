"""The state of a training run, and the tree of all that its optimizer trains."""

from typing import Any

import jax
from flax import struct


@struct.dataclass
class TrainState:
  """What a checkpoint saves.

  Attributes:
    step: the number of steps taken, int32.
    params: the student's weights.
    opt_state: the optimizer's state, of the tree that `trained_tree` makes.
    projections: the weights that terms train beside the student's, by term; {} for none.
    average: the moving average of `params`, float32, where a term learns from it; else {}.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  projections: Any = struct.field(default_factory=dict)
  average: Any = struct.field(default_factory=dict)


# The branch of the trained tree beside the student's own.
_PROJECTIONS = "projections"


def trained_tree(params: Any, projections: Any) -> Any:
  """Returns all that the optimizer sees as one tree: the student's own if there is no more."""
  return {**params, _PROJECTIONS: projections} if projections else params


def split_trained(trained: Any) -> tuple[Any, Any]:
  """Returns the student's weights and the projections of a trained tree."""
  if _PROJECTIONS not in trained:
    return trained, {}
  params = dict(trained)
  return params, params.pop(_PROJECTIONS)
