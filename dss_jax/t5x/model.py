"""The step-by-step loss under T5X: an encoder-decoder model with that loss, and a trainer."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from t5x import losses, models, trainer

from dss_jax.config.schema import TARGET_KINDS, LossConfig
from dss_jax.errors import UserError
from dss_jax.losses.base import LossSum
from dss_jax.losses.kinds import make_objective
from dss_jax.losses.objective import Objective, Sums
from dss_jax.t5x.feature_converter import StepByStepFeatureConverter
from dss_jax.t5x.metrics import named_metrics

# The prefix of what StepByStepTrainer adds to each row of a batch: the denominator of a term.
_DENOMINATOR = "denominator/"


class StepByStepModel(models.EncoderDecoderModel):
  """alpha * label + (1 - alpha) * rationale, each a mean over its target tokens in the batch.

  T5X's own loss is a sum over all target tokens. This one is that of `dss distill`, for
  batches of StepByStepFeatureConverter. Label smoothing and z-loss apply in training only.
  There is no loss_normalizing_factor: each term is divided by its own number of tokens.
  """

  FEATURE_CONVERTER_CLS = StepByStepFeatureConverter

  def __init__(self, *arguments: Any, alpha: float = 0.5, **named: Any):
    """Takes the arguments of T5X's EncoderDecoderModel, and alpha from 0 to 1."""
    if not 0 <= alpha <= 1:
      raise UserError(f"ALPHA is {alpha}, but it must lie from 0 to 1; choose another")
    super().__init__(*arguments, **named)
    self.objective = make_objective(LossConfig(alpha=alpha))

  def loss_fn(
    self,
    params: Any,
    batch: Mapping[str, jax.Array],
    dropout_rng: jax.Array | None,
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Computes the loss, and the metrics of dss_jax together with T5X's.

    Args:
      batch: [rows, length] arrays. For a microbatch of StepByStepTrainer, the loss is the part of
        the whole batch's loss that these rows contribute.
      dropout_rng: None in evaluation.
    """
    training = dropout_rng is not None
    logits_RMV = self._compute_logits(params, batch, dropout_rng)
    targets_RM = batch["decoder_target_tokens"]
    weights_RM = batch["decoder_loss_weights"].astype(jnp.float32)
    correct_RM = (jnp.argmax(logits_RMV, axis=-1) == targets_RM).astype(jnp.float32)

    sums: Sums = {}
    for term in self.objective.terms:
      total, _, weight = losses.compute_weighted_cross_entropy(
        logits_RMV,
        targets_RM,
        jnp.where(term.mask(batch), weights_RM, 0.0),
        label_smoothing=self._label_smoothing if training else 0.0,
        z_loss=self._z_loss if training else 0.0,
      )
      sums[f"{term.name}/loss"] = LossSum(total, weight)
      (kind,) = term.kinds
      correct = jnp.sum(jnp.where(term.mask(batch), correct_RM * weights_RM, 0.0))
      sums[f"{TARGET_KINDS[kind]}/accuracy"] = LossSum(correct, weight)
    loss = self.objective.total(_over_whole_batch(sums, batch))
    metrics = self._compute_metrics(
      logits=logits_RMV,
      targets=targets_RM,
      mask=weights_RM,
      loss=loss,
      segment_ids={side: batch[f"{side}_segment_ids"] for side in ("encoder", "decoder")},
    )
    # These would divide a mean over tokens by the number of tokens again.
    for name in ("loss_per_nonpadding_target_token", "loss_per_all_target_tokens"):
      del metrics[name]
    named = named_metrics(self.objective, sums, "train" if training else "eval")
    return loss, {**metrics, **named}


def with_denominators(batch: Mapping[str, jax.Array], objective: Objective) -> dict[str, jax.Array]:
  """Returns the batch with its terms' denominators beside each row, for its microbatches."""
  weights_RM = batch["decoder_loss_weights"].astype(jnp.float32)
  denominators = objective.denominators({**batch, "decoder_loss_weights": weights_RM})
  rows = weights_RM.shape[0]
  return {
    **batch,
    **{f"{_DENOMINATOR}{name}": jnp.full(rows, value) for name, value in denominators.items()},
  }


def _over_whole_batch(sums: Sums, batch: Mapping[str, jax.Array]) -> Sums:
  """Returns the rows' losses over the denominators of the whole batch, where it has them."""
  whole = dict(sums)
  for name, loss in sums.items():
    term, _, figure = name.partition("/")
    if figure == "loss" and f"{_DENOMINATOR}{term}" in batch:
      whole[name] = LossSum(loss.total, batch[f"{_DENOMINATOR}{term}"][0])
  return whole


class StepByStepTrainer(trainer.Trainer):
  """T5X's trainer, with microbatches whose gradients sum to that of the whole batch.

  T5X sums the gradients of microbatches. Dividing each by its own number of tokens would weight
  tokens wrongly, since microbatches differ in their number of label tokens.
  """

  @functools.cached_property
  def _partitioned_train_step(self) -> Any:
    def train_step(train_state: Any, batch: Mapping[str, jax.Array]) -> Any:
      return trainer.train_with_lr(
        train_state,
        with_denominators(batch, self._model.objective),
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
