"""Feature-based distillation: hidden states of chosen layers, through projections where needed."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from dss_jax.config.kinds import FeatureConfig, LayerMap
from dss_jax.config.schema import T5Config
from dss_jax.errors import UserError
from dss_jax.losses.base import StateLoss, StateTerm
from dss_jax.losses.signals import NetworkOutputs

_EPSILON = 1e-12


@dataclasses.dataclass(frozen=True)
class FeatureLoss(StateLoss):
  """The mean distance of one stack's states, summed over real positions.

  sum_p 1/n sum_(i, j) distance(s_i(p) W, t_j(p)) over the n pairs of a student's layer i and a
  teacher's layer j, in float32. W is a learned matrix (Romero et al. 2015, section 2.2; Jiao et
  al. 2020, equation 8), or left out where the widths are equal, which makes the loss zero for
  equal states.

  cosine: 1 - cos(x, y), which the size of states does not change (Sanh et al. 2019); T5's states
    grow from layer to layer.
  mse: the mean over the width of (x - y)^2.

  The sum is divided by the real positions of the whole batch; padding is left out.

  Attributes:
    pairs: (student's layer, teacher's layer); 0 is the stack's input.
    widths: of the student and of the teacher.
  """

  stack: str
  pairs: tuple[tuple[int, int], ...]
  distance: Literal["cosine", "mse"]
  widths: tuple[int, int]

  @property
  def student_layers(self) -> Mapping[str, tuple[int, ...]]:  # type: ignore[override]
    return {self.stack: tuple(student for student, _ in self.pairs)}

  @property
  def teacher_layers(self) -> Mapping[str, tuple[int, ...]]:  # type: ignore[override]
    return {self.stack: tuple(teacher for _, teacher in self.pairs)}

  def projections(self, key: jax.Array) -> dict[str, nn.LogicallyPartitioned]:
    """Initialises W, float32 [D of the student, D of the teacher], split over its outputs."""
    if self.widths[0] == self.widths[1]:
      return {}
    normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    return {"kernel": nn.LogicallyPartitioned(normal(key, self.widths), ("embed", "mlp"))}

  def total(
    self,
    student: NetworkOutputs,
    teacher: NetworkOutputs | None,
    batch: Mapping[str, jax.Array],
    projections: Mapping[str, jax.Array],
  ) -> jax.Array:
    """See StateLoss."""
    assert teacher is not None
    distances = []
    for student_layer, teacher_layer in self.pairs:
      x = student.states(self.stack)[student_layer]
      if projections:
        kernel_DE = projections["kernel"].astype(x.dtype)
        x = jnp.einsum("bld,de->ble", x, kernel_DE, preferred_element_type=jnp.float32)
      y = teacher.states(self.stack)[teacher_layer]
      distances.append(self._distance(x.astype(jnp.float32), y.astype(jnp.float32)))
    mean_BL = sum(distances[1:], start=distances[0]) / len(distances)
    return jnp.sum(mean_BL, where=self._is_real(batch))

  def denominator(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    """See StateLoss: the number of real positions."""
    return jnp.sum(self._is_real(batch), dtype=jnp.float32)

  def _is_real(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    return batch[f"{self.stack}_segment_ids"] > 0

  def _distance(self, x: jax.Array, y: jax.Array) -> jax.Array:
    if self.distance == "mse":
      return jnp.mean(jnp.square(x - y), axis=-1)
    return 1.0 - jnp.sum(_unit(x) * _unit(y), axis=-1)


def _unit(x: jax.Array) -> jax.Array:
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + _EPSILON)


def feature_terms(
  name: str, weight: float, config: FeatureConfig, student: T5Config, teacher: T5Config, source: str
) -> tuple[StateTerm, ...]:
  """Returns one term for each stack that is compared; they share the weight equally.

  Raises UserError for a layer that a network does not have, and if there is nothing to compare.
  """
  maps = {
    "encoder": (config.encoder, student.num_encoder_layers, teacher.num_encoder_layers),
    "decoder": (config.decoder, student.num_decoder_layers, teacher.num_decoder_layers),
  }
  widths = student.emb_dim, teacher.emb_dim
  losses = []
  for stack, layers in maps.items():
    if pairs := layer_pairs(*layers, f"FeatureConfig.{stack}"):
      losses.append(FeatureLoss(stack, pairs, config.distance, widths))
  if not losses:
    raise UserError(
      "FeatureConfig.encoder and FeatureConfig.decoder are both (), so no states are compared; "
      "name layers of one of them, or leave out --kind feature"
    )
  return tuple(
    StateTerm(f"{name}_{loss.stack}", weight / len(losses), loss, source) for loss in losses
  )


def layer_pairs(
  layer_map: LayerMap, student_layers: int, teacher_layers: int, place: str
) -> tuple[tuple[int, int], ...]:
  """Returns the (student's layer, teacher's layer) pairs of a layer map.

  "uniform" is (i, ceil(i teacher_layers / student_layers)) for each layer i of the student, which
  ends with both last layers (Jiao et al. 2020, section 4.2); "last" those alone.

  Raises UserError, beginning with `place`, for a layer that is not there.
  """
  if layer_map == "last":
    return ((student_layers, teacher_layers),)
  if layer_map == "uniform":
    return tuple(
      (layer, math.ceil(layer * teacher_layers / student_layers))
      for layer in range(1, student_layers + 1)
    )
  for pair in layer_map:
    for who, layer, count in zip(
      ("student", "teacher"), pair, (student_layers, teacher_layers), strict=True
    ):
      check_layer(layer, count, who, place)
  return layer_map


def check_layer(layer: int, count: int, who: str, place: str, *, first: int = 0) -> None:
  """Raises UserError, beginning with `place`, unless a network has the layer."""
  if not first <= layer <= count:
    named = "0 (the input)" if first == 0 else str(first)
    raise UserError(
      f"{place}: the {who} has no layer {layer}; give one of {named} to {count} (the last)"
    )
