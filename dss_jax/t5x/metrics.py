"""The sums of a step as clu metrics, under the names that `dss distill` writes."""

from typing import Any, Literal

import flax
import jax
from clu import metrics as clu_metrics
from t5x import metrics as t5x_metrics

from dss_jax.losses.base import LossSum
from dss_jax.losses.step_by_step import TaskSums

# T5X's microbatches start from zeros in a metric's fields: each is an array or a metric itself.


@flax.struct.dataclass
class TokenMean(clu_metrics.Metric):
  """A mean over the tokens of all batches merged; 0 where there was none."""

  total: jax.Array
  weight: jax.Array

  def merge(self, other: "TokenMean") -> "TokenMean":
    return self.replace(total=self.total + other.total, weight=self.weight + other.weight)

  def compute(self) -> jax.Array:
    return LossSum(self.total, self.weight).mean()


@flax.struct.dataclass
class TotalLoss(clu_metrics.Metric):
  """The step-by-step loss of all batches merged, each task's mean over all its tokens."""

  label: TokenMean
  rationale: TokenMean
  alpha: float = flax.struct.field(pytree_node=False)

  def merge(self, other: "TotalLoss") -> "TotalLoss":
    return self.replace(
      label=self.label.merge(other.label), rationale=self.rationale.merge(other.rationale)
    )

  def compute(self) -> jax.Array:
    return self.alpha * self.label.compute() + (1.0 - self.alpha) * self.rationale.compute()


def named_metrics(
  sums: TaskSums, prefix: Literal["train", "eval"], *, alpha: float
) -> dict[str, Any]:
  """The metrics of dss_jax.train.metrics.named_metrics, to be merged by T5X's trainer."""
  correct = sums.label_correct + sums.rationale_correct
  label_loss, rationale_loss = TokenMean(*sums.label_loss), TokenMean(*sums.rationale_loss)
  return {
    f"{prefix}_total_loss": TotalLoss(label_loss, rationale_loss, alpha),
    f"{prefix}_fraction_of_correct_next_step_preds": TokenMean(*correct),
    f"{prefix}_num_predictions": t5x_metrics.Sum(correct.weight),
    f"label/{prefix}_loss": label_loss,
    f"label/{prefix}_accuracy": TokenMean(*sums.label_correct),
    f"rationale/{prefix}_loss": rationale_loss,
    f"rationale/{prefix}_accuracy": TokenMean(*sums.rationale_correct),
  }
