"""An update rule that looks at whole weights, given each layer of a scanned stack by itself."""

from typing import Any

import jax
import optax

from dss_jax.model.layer_stacks import LAYERS, STACKS, is_scanned

# The part of the parameters that no stack holds.
_REST = "rest"


def per_layer(rule: optax.GradientTransformation) -> optax.GradientTransformation:
  """The rule, with the layers of scanned stacks taken for the weights that they are unrolled.

  Adafactor factors a matrix into its rows and columns, and scales an update by the sizes of
  the matrix and of the update: of one with all layers in it, it would make another update.
  A network whose layers are unrolled gets the rule as it is, state included.
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
  """Each stack's layers, which lie along the first axis of their arrays, and the rest.

  Within its part a weight has the path that it has in the whole, by which its sharding is found.
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
