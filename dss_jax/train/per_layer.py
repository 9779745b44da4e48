"""Update rules that depend on whole matrices, applied to each layer of scanned stacks."""

from typing import Any

import jax
import optax

from dss_jax.model.layer_stacks import LAYERS, STACKS, is_scanned

# The parameters outside the stacks.
_REST = "rest"


def per_layer(rule: optax.GradientTransformation) -> optax.GradientTransformation:
  """Returns the rule, applied to each layer of a scanned stack separately.

  Adafactor factors a matrix into rows and columns, and scales an update by the RMS of the matrix
  and of the update. Applied to an array of all layers, it would compute another update.
  For unrolled layers the rule and its state are unchanged.
  """

  def init(params: Any) -> Any:
    if not is_scanned(params):
      return rule.init(params)
    return {
      name: rule.init(part) if name == _REST else jax.vmap(rule.init)(part)
      for name, part in _parts(params).items()
    }

  def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    if not is_scanned(gradient):
      return rule.update(gradient, state, params)
    gradients, weights = _parts(gradient), _parts(params)
    updates, states = {}, {}
    for name, part in gradients.items():
      of_part = rule.update if name == _REST else jax.vmap(rule.update)
      updates[name], states[name] = of_part(part, state[name], weights[name])
    return _joined(updates), states

  return optax.GradientTransformation(init, update)


def _parts(params: Any) -> dict[str, Any]:
  """Splits the tree into each stack's layers (stacked along axis 0) and the rest.

  A weight keeps its path within its part, since its sharding is looked up by path.
  """
  parts = {stack: {stack: {LAYERS: params[stack][LAYERS]}} for stack in STACKS}
  rest = dict(params)
  for stack in STACKS:
    rest[stack] = {name: branch for name, branch in params[stack].items() if name != LAYERS}
  return {**parts, _REST: rest}


def _joined(parts: dict[str, Any]) -> Any:
  whole = dict(parts[_REST])
  for stack in STACKS:
    whole[stack] = {**whole[stack], **parts[stack][stack]}
  return whole
