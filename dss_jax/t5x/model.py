"""The step-by-step loss under T5X: its encoder-decoder model with another loss, and a trainer."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from t5x import losses, models, trainer

from dss_jax.errors import UserError
from dss_jax.losses import step_by_step
from dss_jax.losses.base import LossSum
from dss_jax.losses.step_by_step import LABEL, RATIONALE, TaskSums
from dss_jax.t5x.feature_converter import StepByStepFeatureConverter
from dss_jax.t5x.metrics import named_metrics

# What StepByStepTrainer adds to a batch: the tasks' weights in all of it, once for each row.
_WHOLE_BATCH = {LABEL: "label_weight", RATIONALE: "rationale_weight"}


class StepByStepModel(models.EncoderDecoderModel):
  """alpha * label + (1 - alpha) * rationale, each a mean over its target tokens in the batch.

  T5X's own loss is a sum over all tokens of both tasks. This one is that of `dss distill`, for
  batches of StepByStepFeatureConverter. Label smoothing and z-loss belong to training; the
  evaluation's loss is without them. There is no loss_normalizing_factor: the tasks' tokens
  are what is divided by.
  """

  FEATURE_CONVERTER_CLS = StepByStepFeatureConverter

  def __init__(self, *arguments: Any, alpha: float = 0.5, **named: Any):
    """Takes what T5X's EncoderDecoderModel does, and alpha from 0 to 1."""
    if not 0 <= alpha <= 1:
      raise UserError(f"ALPHA is {alpha}, but it must lie from 0 to 1; choose another")
    super().__init__(*arguments, **named)
    self._alpha = alpha

  def loss_fn(
    self,
    params: Any,
    batch: Mapping[str, jax.Array],
    dropout_rng: jax.Array | None,
  ) -> tuple[jax.Array, dict[str, Any]]:
    """The loss, and the metrics of dss_jax beside T5X's.

    Args:
      batch: [rows, length] arrays; where StepByStepTrainer has cut it out of a larger one, the
        loss is the part of the larger one's loss that these rows contribute.
      dropout_rng: None is evaluation.
    """
    training = dropout_rng is not None
    logits_RMV = self._compute_logits(params, batch, dropout_rng)
    targets_RM = batch["decoder_target_tokens"]
    weights_RM = batch["decoder_loss_weights"].astype(jnp.float32)
    correct_RM = (jnp.argmax(logits_RMV, axis=-1) == targets_RM).astype(jnp.float32)

    def sums_of(task: int) -> list[LossSum]:
      task_weights_RM = jnp.where(batch["decoder_task_ids"] == task, weights_RM, 0.0)
      total, _, weight = losses.compute_weighted_cross_entropy(
        logits_RMV,
        targets_RM,
        task_weights_RM,
        label_smoothing=self._label_smoothing if training else 0.0,
        z_loss=self._z_loss if training else 0.0,
      )
      return [LossSum(total, weight), LossSum(jnp.sum(correct_RM * task_weights_RM), weight)]

    sums = TaskSums(*sums_of(LABEL), *sums_of(RATIONALE))
    loss = step_by_step.combined(_over_whole_batch(sums, batch), alpha=self._alpha)
    metrics = self._compute_metrics(
      logits=logits_RMV,
      targets=targets_RM,
      mask=weights_RM,
      loss=loss,
      segment_ids={side: batch[f"{side}_segment_ids"] for side in ("encoder", "decoder")},
    )
    # A mean over tokens divided by tokens once more says nothing.
    for name in ("loss_per_nonpadding_target_token", "loss_per_all_target_tokens"):
      del metrics[name]
    named = named_metrics(sums, "train" if training else "eval", alpha=self._alpha)
    return loss, {**metrics, **named}


def with_task_weights(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """The batch with the two tasks' summed weights beside each row, for its parts to divide by."""
  weights = step_by_step.task_weights(
    batch["decoder_loss_weights"].astype(jnp.float32), batch["decoder_task_ids"]
  )
  rows = batch["decoder_task_ids"].shape[0]
  named = zip(_WHOLE_BATCH.values(), weights, strict=True)
  return {**batch, **{name: jnp.full(rows, weight) for name, weight in named}}


def _over_whole_batch(sums: TaskSums, batch: Mapping[str, jax.Array]) -> TaskSums:
  """These rows' losses over the weights of the batch that they were cut out of, if they were."""
  if _WHOLE_BATCH[LABEL] not in batch:
    return sums
  return sums._replace(
    label_loss=LossSum(sums.label_loss.total, batch[_WHOLE_BATCH[LABEL]][0]),
    rationale_loss=LossSum(sums.rationale_loss.total, batch[_WHOLE_BATCH[RATIONALE]][0]),
  )


class StepByStepTrainer(trainer.Trainer):
  """T5X's trainer, whose microbatches together give exactly the whole batch's gradient.

  T5X adds up the gradients of microbatches. A microbatch has more or fewer label tokens than
  its share, so dividing by its own would weigh its tokens wrongly.
  """

  @functools.cached_property
  def _partitioned_train_step(self) -> Any:
    def train_step(train_state: Any, batch: Mapping[str, jax.Array]) -> Any:
      return trainer.train_with_lr(
        train_state,
        with_task_weights(batch),
        learning_rate=self._learning_rate_fn(train_state.step),
        dropout_rng=self._get_step_rng(train_state.step),
        model=self._model,
        num_microbatches=self._num_microbatches,
        weight_metrics_computer=self._weight_metrics_computer,
        data_partition_spec=self._partitioner.data_partition_spec,
      )

    return self._partitioner.partition(
      train_step,
      in_axis_resources=(self._train_state_axes, self._partitioner.data_partition_spec),
      out_axis_resources=(self._train_state_axes, None),
      donate_argnums=(0,),
    )
