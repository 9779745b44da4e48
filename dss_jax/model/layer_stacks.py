"""The two layouts of a network's layers, and the conversion between them.

Unrolled, each layer has its own weights: `encoder.layers_3.mlp.wo.kernel`. Scanned, the layers of
a stack are one array whose first axis counts them: `encoder.layers.mlp.wo.kernel`. The other
axes are the same in both.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dss_jax.config.schema import T5Config

STACKS = ("encoder", "decoder")
# The name of a scanned stack's weights and of its axis, and the prefix of a layer's name.
LAYERS = "layers"
_LAYER = re.compile(rf"({'|'.join(STACKS)})\.{LAYERS}_(\d+)\.(.+)")

Weight = TypeVar("Weight")


def unrolled_config(config: T5Config) -> T5Config:
  return dataclasses.replace(config, scan_layers=False)


def is_scanned(params: Any) -> bool:
  """Returns whether a tree of weights is scanned."""
  return isinstance(params, Mapping) and LAYERS in params.get(STACKS[0], {})


def stacked(
  weights: Mapping[str, Weight], combine: Callable[[list[Weight]], Weight]
) -> dict[str, Weight]:
  """Converts an unrolled network's weights, by name, to the scanned layout.

  Args:
    combine: stacks the layers of a weight, given from first to last.
  """
  result: dict[str, Weight] = {}
  layers: dict[str, dict[int, Weight]] = {}
  for name, weight in weights.items():
    found = _LAYER.fullmatch(name)
    if found is None:
      result[name] = weight
    else:
      stack, number, rest = found.groups()
      layers.setdefault(f"{stack}.{LAYERS}.{rest}", {})[int(number)] = weight
  for name, by_number in layers.items():
    result[name] = combine([by_number[number] for number in sorted(by_number)])
  return result


def unstacked(
  weights: Mapping[str, Weight], split: Callable[[Weight], list[Weight]]
) -> dict[str, Weight]:
  """Converts a scanned network's weights, by name, to the unrolled layout."""
  result: dict[str, Weight] = {}
  for name, weight in weights.items():
    stack, _, rest = name.partition(f".{LAYERS}.")
    if not rest:
      result[name] = weight
      continue
    for number, layer in enumerate(split(weight)):
      result[f"{stack}.{LAYERS}_{number}.{rest}"] = layer
  return result


def chosen_layers(
  weights: Mapping[str, Weight], choice: Mapping[str, Sequence[int]]
) -> dict[str, Weight]:
  """Returns an unrolled network's weights, by name, with the chosen layers of each stack alone.

  Args:
    choice: the numbers of the layers of each stack, in the order that they get.
  """
  result: dict[str, Weight] = {}
  for name, weight in weights.items():
    found = _LAYER.fullmatch(name)
    if found is None:
      result[name] = weight
      continue
    stack, number, rest = found.groups()
    for position, layer in enumerate(choice[stack]):
      if layer == int(number):
        result[f"{stack}.{LAYERS}_{position}.{rest}"] = weight
  return result


def stacked_params(params: Any) -> Any:
  """Converts an unrolled tree to a scanned one; boxes of logical axes get the axis "layers"."""

  def combine(layers: list[Any]) -> Any:
    first = layers[0]
    if not isinstance(first, nn.LogicallyPartitioned):
      return jnp.stack(layers)
    whole = first.replace_boxed(jnp.stack([layer.unbox() for layer in layers]))
    return whole.add_axis(0, {nn.PARTITION_NAME: LAYERS})

  return unflatten_dict(stacked(flatten_dict(params, sep="."), combine), sep=".")


def unrolled(params: Any, config: T5Config) -> tuple[Any, T5Config]:
  """Returns the weights and the configuration of the same network, unrolled."""
  if not config.scan_layers:
    return params, config
  flat = unstacked(flatten_dict(params, sep="."), list)
  return unflatten_dict(flat, sep="."), unrolled_config(config)


def to_layout_of(params: Any, shape: Any) -> Any:
  """Converts weights on their devices to the layout of `shape`, a tree with shardings.

  They are converted one by one and freed on the way unless the caller keeps them, so the extra
  memory is that of the largest weight.
  """
  flat, wanted = flatten_dict(params, sep="."), flatten_dict(shape, sep=".")
  del params
  if flat.keys() == wanted.keys():
    return unflatten_dict(flat, sep=".")
  names = flat if len(flat) > len(wanted) else wanted
  layers = stacked({name: [name] for name in names}, lambda each: [name for (name,) in each])
  result = {}
  for name, parts in layers.items():
    if name in flat and name in wanted:
      result[name] = flat.pop(name)
    elif name in wanted:
      stack = jax.jit(lambda *each: jnp.stack(each), out_shardings=wanted[name].sharding)
      result[name] = stack(*(flat.pop(part) for part in parts))
    else:
      split_layers = jax.jit(list, out_shardings=[wanted[part].sharding for part in parts])
      result.update(zip(parts, split_layers(flat.pop(name)), strict=True))
  return unflatten_dict(result, sep=".")
