"""Relational distillation: distances and angles between the sequences of a batch."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from dss_jax.config.kinds import RelationConfig
from dss_jax.config.schema import T5Config
from dss_jax.losses.base import StateLoss, StateTerm
from dss_jax.losses.pooling import pooled, present
from dss_jax.losses.signals import NetworkOutputs

_EPSILON = 1e-12


@dataclasses.dataclass(frozen=True)
class RelationLoss(StateLoss):
  """The difference of one relation in the two networks, between all sequences of a batch.

  A sequence, an example's label or its rationale, is the mean of a stack's last normed states over
  its positions. Widths and depths may differ. Park et al. 2019 (RKD), with sums over different
  sequences alone; h is Huber's loss with delta 1:

  distance (equations 4 to 6): sum_{i != j} h(|x_i - x_j| / mu_x - |y_i - y_j| / mu_y), mu the mean
    distance in the batch, divided by the n (n - 1) pairs.
  angle (equations 7 and 8): sum_{i, j, k} h(cos x_ijk - cos y_ijk), the angle at j between i and k,
    divided by the n (n - 1) (n - 2) triples. It takes n^3 D operations and n^2 + n D numbers.

  Float32. All sequences of the batch are compared, on all devices, so that microbatches would be
  another loss.

  Attributes:
    layers: the last layer of the student's stack, and of the teacher's.
    examples: the most examples in a batch.
  """

  relation: Literal["distance", "angle"]
  stack: str
  layers: tuple[int, int]
  examples: int

  @property
  def student_layers(self) -> Mapping[str, tuple[int, ...]]:  # type: ignore[override]
    return {self.stack: self.layers[:1]}

  @property
  def teacher_layers(self) -> Mapping[str, tuple[int, ...]]:  # type: ignore[override]
    return {self.stack: self.layers[1:]}

  def total(
    self,
    student: NetworkOutputs,
    teacher: NetworkOutputs | None,
    batch: Mapping[str, jax.Array],
    projections: Mapping[str, jax.Array],
  ) -> jax.Array:
    """See StateLoss."""
    del projections
    assert teacher is not None
    x_ND = pooled(student, batch, self.stack, self.layers[0], self.examples)
    y_NE = pooled(teacher, batch, self.stack, self.layers[1], self.examples)
    compared = distance_differences if self.relation == "distance" else angle_differences
    return compared(x_ND, y_NE, present(batch, self.stack, self.examples))

  def denominator(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    """See StateLoss: the number of pairs or of triples."""
    count = jnp.sum(present(batch, self.stack, self.examples), dtype=jnp.float32)
    pairs = count * (count - 1.0)
    return pairs if self.relation == "distance" else pairs * (count - 2.0)


def distance_differences(x_ND: jax.Array, y_NE: jax.Array, present_N: jax.Array) -> jax.Array:
  """Computes the sum of RelationLoss over the pairs of present sequences."""
  pairs_NN = present_N[:, None] & present_N & ~jnp.eye(len(present_N), dtype=bool)

  def relative_distances(z: jax.Array) -> jax.Array:
    # A row at a time: no array [N, N, D] is kept, neither for the backward pass.
    row = jax.checkpoint(lambda z_j: _lengths(z - z_j))
    distances_NN = jax.lax.map(row, z)
    mean = jnp.sum(distances_NN, where=pairs_NN) / jnp.maximum(jnp.sum(pairs_NN), 1)
    return distances_NN / jnp.maximum(mean, _EPSILON)

  differences_NN = relative_distances(x_ND) - relative_distances(y_NE)
  return jnp.sum(_huber(differences_NN), where=pairs_NN)


def angle_differences(x_ND: jax.Array, y_NE: jax.Array, present_N: jax.Array) -> jax.Array:
  """Computes the sum of RelationLoss over the triples of present sequences."""
  different_NN = ~jnp.eye(len(present_N), dtype=bool)

  def cosines(z: jax.Array, z_j: jax.Array) -> jax.Array:
    away = z - z_j
    unit = away * jax.lax.rsqrt(jnp.sum(jnp.square(away), axis=-1, keepdims=True) + _EPSILON)
    # Each device of the data axis has some of the rows.
    return nn.with_logical_constraint(unit, ("batch", None)) @ unit.T

  @jax.checkpoint
  def at_corner(x_j, y_j, is_corner, others_N):
    differences_NN = cosines(x_ND, x_j) - cosines(y_NE, y_j)
    counted_NN = others_N[:, None] & others_N & different_NN & is_corner
    return jnp.sum(_huber(differences_NN), where=counted_NN)

  def visit(total, corner):
    return total + at_corner(*corner), None

  corners = (x_ND, y_NE, present_N, present_N & different_NN)
  return jax.lax.scan(visit, jnp.zeros((), jnp.float32), corners)[0]


def _lengths(vectors_ND: jax.Array) -> jax.Array:
  """Returns the Euclidean lengths; their gradient at 0 is 0."""
  squares_N = jnp.sum(jnp.square(vectors_ND), axis=-1)
  is_zero = squares_N == 0
  return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squares_N)))


def _huber(x: jax.Array) -> jax.Array:
  return jnp.where(jnp.abs(x) <= 1.0, 0.5 * jnp.square(x), jnp.abs(x) - 0.5)


def relation_terms(
  name: str,
  weight: float,
  config: RelationConfig,
  student: T5Config,
  teacher: T5Config,
  source: str,
  examples: int,
) -> tuple[StateTerm, ...]:
  """Returns the terms of distances and of angles that have a weight."""
  layers = student.num_decoder_layers, teacher.num_decoder_layers
  if config.stack == "encoder":
    layers = student.num_encoder_layers, teacher.num_encoder_layers
  shares: tuple[tuple[Literal["distance", "angle"], float], ...] = (
    ("distance", config.distance_weight),
    ("angle", config.angle_weight),
  )
  return tuple(
    StateTerm(
      f"{name}_{relation}",
      weight * share,
      RelationLoss(relation, config.stack, layers, examples),
      source,
    )
    for relation, share in shares
    if share
  )
