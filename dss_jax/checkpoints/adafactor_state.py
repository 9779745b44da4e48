"""Starting Adafactor from the moments of a checkpoint."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from dss_jax.checkpoints.adafactor_moments import StoredMoments
from dss_jax.checkpoints.arrays import (
  StoredArray,
  in_memory,
  lay_out,
  layers_stacked,
  weight_name,
)
from dss_jax.errors import UserError
from dss_jax.model.layer_stacks import stacked

_KINDS = ("v", "v_row", "v_col")
# optax and T5X both store a moment that a weight does not have as one number.
_NOTHING = in_memory(np.zeros(1, np.float32))


def check_moments(opt_state: Any, moments: StoredMoments, place: str) -> None:
  """Raises UserError, beginning with `place`, for the first moment whose shape differs.

  Args:
    opt_state: the state of make_optimizer's Adafactor, or its shapes.
  """
  stored = _by_kind(moments)
  for node in _factored_states(opt_state):
    for kind in _KINDS:
      for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(node, kind)):
        name = weight_name(path)
        shape = stored[kind].get(name, _NOTHING).shape
        if shape != leaf.shape:
          raise UserError(
            f"{place}: Adafactor's {kind} of the weight {name} has the shape {shape}, but "
            f"{leaf.shape} here, where it is factored in another way; leave out "
            "--initial-optimizer-state"
          )


def with_moments(opt_state: Any, moments: StoredMoments) -> Any:
  """Returns the optimizer's state with a checkpoint's moments and their number of updates.

  The moments change by a share of (count + 1)^-0.8 per step. The learning rate's schedule starts
  at step 0, as the run does. Each device's part of a moment is read separately.

  Args:
    opt_state: that of make_optimizer's Adafactor, on its mesh; checked by check_moments.

  Raises:
    UserError: a moment cannot be read.
  """
  stored = _by_kind(moments)

  def filled(node: Any) -> Any:
    if not isinstance(node, optax.FactoredState):
      return node
    trees = {}
    for kind in _KINDS:
      tree = getattr(node, kind)
      names = [weight_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
      trees[kind] = lay_out({name: stored[kind].get(name, _NOTHING) for name in names}, tree)
    return node._replace(count=_filled_with(moments.step, node.count), **trees)

  return jax.tree.map(filled, opt_state, is_leaf=lambda n: isinstance(n, optax.FactoredState))


def _by_kind(moments: StoredMoments) -> dict[str, dict[str, StoredArray]]:
  """Returns each moment's arrays by weight name, in both layouts of the layers."""
  kinds = {kind: getattr(moments, kind) for kind in _KINDS}
  weights = sorted(set().union(*kinds.values()))
  result = {}
  for kind, stored in kinds.items():
    unrolled = {name: stored.get(name, _NOTHING) for name in weights}
    result[kind] = {**unrolled, **stacked(unrolled, layers_stacked)}
  return result


def _factored_states(opt_state: Any) -> Iterator[optax.FactoredState]:
  def is_one(node: Any) -> bool:
    return isinstance(node, optax.FactoredState)

  return filter(is_one, jax.tree.leaves(opt_state, is_leaf=is_one))


def _filled_with(number: int, like: jax.Array) -> jax.Array:
  whole = np.full(like.shape, number, like.dtype)
  return jax.make_array_from_callback(like.shape, like.sharding, lambda index: whole[index])
