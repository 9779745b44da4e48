"""The settings of each kind of distillation."""

import dataclasses
from typing import Annotated, Literal

from dss_jax.config.bounds import Bounds, Count, NonNegative, NonNegativeInt, Share

# (student's layer, teacher's layer) pairs, 0 for a stack's input; or a rule that gives them.
LayerMap = Literal["uniform", "last"] | tuple[tuple[NonNegativeInt, NonNegativeInt], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResponseConfig:
  """How the student's next-token distribution is compared with another (losses/response.py)."""

  divergence: Literal[
    "forward", "reverse", "skewed-forward", "skewed-reverse", "jensen-shannon"
  ] = "forward"
  # Both logits are divided by it.
  temperature: Annotated[float, Bounds(0.01, 100)] = 1.0
  # The share of the first distribution in what a skewed divergence compares it with.
  skew: Share = 0.1
  # The share of the teacher in the mixture of Jensen-Shannon.
  mixture: Share = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniversalConfig:
  """How sorted next-token probabilities are compared (losses/universal.py)."""

  # Both logits are divided by it.
  temperature: Annotated[float, Bounds(0.01, 100)] = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureConfig:
  """Which hidden states of student and teacher are compared, and how (losses/feature.py)."""

  # "uniform" spreads the teacher's layers evenly over all of the student's, "last" takes the last
  # ones, () none.
  encoder: LayerMap = "uniform"
  decoder: LayerMap = "uniform"
  distance: Literal["cosine", "mse"] = "cosine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelationConfig:
  """Which relations between the sequences of a batch are compared (losses/relation.py)."""

  # The stack whose last states are averaged over a sequence.
  stack: Literal["encoder", "decoder"] = "decoder"
  distance_weight: NonNegative = 1.0
  angle_weight: NonNegative = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
  """Which layers' relations between positions are compared (losses/attention.py)."""

  # (student's layer, teacher's layer), from 1; None for none.
  encoder: Literal["last"] | tuple[Count, Count] | None = "last"
  decoder: Literal["last"] | tuple[Count, Count] | None = "last"
  # Into which queries, keys and values of both are split.
  relation_heads: Count = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfAverageConfig:
  """How the average of the student's weights follows them (train/step.py)."""

  # The share of itself that it keeps at a step.
  decay: Share = 0.999


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfLayersConfig:
  """Which decoder layers learn from the last one (losses/self_layers.py)."""

  # From 1; None is the one at half of the depth.
  layers: tuple[Count, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MutualInformationConfig:
  """How labels and rationales of a batch are matched (losses/mutual_information.py)."""

  # Cosines are divided by it.
  temperature: Annotated[float, Bounds(0.001, 100)] = 0.1
