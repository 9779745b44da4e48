"""The settings of the kinds of distillation that read hidden states."""

import dataclasses
from typing import Literal

from dss_jax.config.bounds import NonNegativeInt

# (student's layer, teacher's layer) pairs, 0 for a stack's input; or a rule that gives them.
LayerMap = Literal["uniform", "last"] | tuple[tuple[NonNegativeInt, NonNegativeInt], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureConfig:
  """Which hidden states of student and teacher are compared, and how (losses/feature.py)."""

  # "uniform" spreads the teacher's layers evenly over all of the student's, "last" takes the last
  # ones, () none.
  encoder: LayerMap = "uniform"
  decoder: LayerMap = "uniform"
  distance: Literal["cosine", "mse"] = "cosine"
