"""The sums of a step as clu metrics, under the names that `dss distill` writes."""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import flax
import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from t5x import metrics as t5x_metrics

from dss_jax.losses.base import LossSum
from dss_jax.losses.objective import Objective

# T5X starts microbatches from zeros in a metric's fields: each must be an array or a metric.


@flax.struct.dataclass
class TokenMean(clu_metrics.Metric):
  """A mean over the tokens of all merged batches; 0 if there are none."""

  total: jax.Array
  weight: jax.Array

  def merge(self, other: "TokenMean") -> "TokenMean":
    return self.replace(total=self.total + other.total, weight=self.weight + other.weight)

  def compute(self) -> jax.Array:
    return LossSum(self.total, self.weight).mean()


@flax.struct.dataclass
class TotalLoss(clu_metrics.Metric):
  """The total loss of all merged batches: the sum of factor times mean over the terms.

  Attributes:
    totals, weights: the LossSum of each term, float32 [terms].
    factors: the weight of each term in the objective.
  """

  totals: jax.Array
  weights: jax.Array
  factors: tuple[float, ...] = flax.struct.field(pytree_node=False)

  def merge(self, other: "TotalLoss") -> "TotalLoss":
    return self.replace(totals=self.totals + other.totals, weights=self.weights + other.weights)

  def compute(self) -> jax.Array:
    return jnp.dot(jnp.array(self.factors), LossSum(self.totals, self.weights).mean())


def named_metrics(
  objective: Objective, sums: Mapping[str, LossSum], prefix: Literal["train", "eval"]
) -> dict[str, Any]:
  """Returns the metrics of dss_jax.train.metrics.named_metrics, to be merged by T5X's trainer."""
  correct = [each for name, each in sums.items() if name.endswith("/accuracy")]
  all_correct = functools.reduce(LossSum.__add__, correct)
  losses = [sums[f"{term.name}/loss"] for term in objective.terms]
  named = {
    f"{prefix}_total_loss": TotalLoss(
      jnp.array([loss.total for loss in losses]),
      jnp.array([loss.weight for loss in losses]),
      tuple(term.weight for term in objective.terms),
    ),
    f"{prefix}_fraction_of_correct_next_step_preds": TokenMean(*all_correct),
    f"{prefix}_num_predictions": t5x_metrics.Sum(all_correct.weight),
  }
  for name, each in sums.items():
    group, figure = name.split("/")
    named[f"{group}/{prefix}_{figure}"] = TokenMean(*each)
  return named
