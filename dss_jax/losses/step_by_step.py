"""Distilling step by step: the label's and the rationale's cross-entropy, weighed by alpha."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dss_jax.losses.base import LossSum
from dss_jax.losses.cross_entropy import TokenLosses

# Values of `decoder_task_ids`.
LABEL, RATIONALE = 0, 1


class TaskSums(NamedTuple):
  """Loss and right next tokens of each task, as sums over the tokens seen so far."""

  label_loss: LossSum
  label_correct: LossSum
  rationale_loss: LossSum
  rationale_correct: LossSum

  def __add__(self, other: "TaskSums") -> "TaskSums":  # type: ignore[override]
    return TaskSums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def coefficients(
  loss_weights_RM: jax.Array,
  task_ids_RM: jax.Array,
  label_weight: jax.Array,
  rationale_weight: jax.Array,
  *,
  alpha: float,
) -> jax.Array:
  """What each token's loss is multiplied with, so that the sum is the step-by-step loss.

  alpha * sum(label losses) / W_label + (1 - alpha) * sum(rationale losses) / W_rationale,
  each W the task's summed weights over the whole batch, all microbatches and hosts: then
  parts of the batch simply add up (Hsieh et al. 2023, section 3.2, with the means taken over
  tokens as in its published code). A task without tokens contributes nothing.

  Args:
    loss_weights_RM: float32, 0 for padding.
    task_ids_RM: int32, LABEL or RATIONALE.
    label_weight, rationale_weight: float32 scalars, the two W.
  """
  label = alpha / jnp.maximum(label_weight, 1.0)
  rationale = (1.0 - alpha) / jnp.maximum(rationale_weight, 1.0)
  return loss_weights_RM * jnp.where(task_ids_RM == LABEL, label, rationale)


def task_weights(loss_weights_RM: jax.Array, task_ids_RM: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The summed weights of label and rationale tokens, two float32 scalars."""
  is_label = task_ids_RM == LABEL
  return (
    jnp.sum(loss_weights_RM, where=is_label),
    jnp.sum(loss_weights_RM, where=~is_label),
  )


def task_sums(losses: TokenLosses, loss_weights_RM: jax.Array, task_ids_RM: jax.Array) -> TaskSums:
  """Each task's summed loss and correctness; a token of weight 0 adds nothing."""
  sums = []
  for weights_RM in (
    jnp.where(task_ids_RM == LABEL, loss_weights_RM, 0.0),
    jnp.where(task_ids_RM == RATIONALE, loss_weights_RM, 0.0),
  ):
    weight = jnp.sum(weights_RM)
    sums += [
      LossSum(jnp.sum(losses.loss * weights_RM), weight),
      LossSum(jnp.sum(losses.correct * weights_RM), weight),
    ]
  return TaskSums(*sums)


def combined(sums: TaskSums, *, alpha: float) -> jax.Array:
  """The step-by-step loss of summed tasks, a float32 scalar."""
  return alpha * sums.label_loss.mean() + (1.0 - alpha) * sums.rationale_loss.mean()


def trained_tasks(alpha: float) -> tuple[int, ...]:
  """The tasks that carry weight in the loss; the other's sequences are not even packed."""
  if alpha == 1.0:
    return (LABEL,)
  if alpha == 0.0:
    return (RATIONALE,)
  return (LABEL, RATIONALE)
