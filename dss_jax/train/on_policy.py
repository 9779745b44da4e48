"""On-policy distillation: steps trained on what the student writes, as the teacher would go on.

In a share of the steps, the targets are sampled from the student's present weights, and its next
tokens are compared with the teacher's after each beginning of its own, as at serving time
(Agarwal et al. 2024, GKD). No gradient flows through the sampling. Which steps these are and
what is sampled follow from the seed, the step and the weights, so that a run resumes exactly.
"""

import functools
from typing import Any

import numpy as np

from dss_jax.config.schema import TARGET_KINDS, DecodingConfig, RunConfig
from dss_jax.data.on_policy import OnPolicyBatches, SampledTargets, is_on_policy
from dss_jax.decoding.input_packing import padded_length
from dss_jax.decoding.rollout import TargetSampler
from dss_jax.errors import UserError
from dss_jax.losses.kinds import chosen_kinds
from dss_jax.losses.step_by_step import kind_shares
from dss_jax.train.step import Arrays, Trainer

# The shortest padded input; see padded_length for longer ones.
_LEAST_INPUT_TOKENS = 32


class OnPolicy:
  """Samples the batches of the steps that are on-policy."""

  def __init__(
    self,
    config: RunConfig,
    trainer: Trainer,
    batches: OnPolicyBatches,
    *,
    eos_id: int,
    pad_id: int,
  ):
    self._config = config
    self._trainer = trainer
    self._batches = batches
    self._eos_id = eos_id
    self._sampler = TargetSampler(
      config.model,
      trainer.mesh,
      decoding=DecodingConfig(temperature=config.on_policy.temperature),
      seed=config.seed,
      max_tokens=max_tokens(config),
      eos_id=eos_id,
      pad_id=pad_id,
    )
    # Rows sampled at a time: those of a microbatch.
    data = trainer.mesh.shape["data"]
    sequences = config.batch_size * len(sampled_kinds(config))
    self._rows = -(-sequences // (config.accumulation_steps * data)) * data

  def takes(self, step: int) -> bool:
    """Returns whether step n, counted from 0, is on-policy."""
    config = self._config
    is_drawn = is_on_policy(step, share=config.on_policy.share, seed=config.seed)
    return is_drawn and bool(self._batches.sequences(step))

  def sample(self, params: Any, step: int) -> SampledTargets:
    """Samples the targets of step n from the weights; every process gets all of them."""
    sequences = self._batches.sequences(step)
    length = padded_length(int(self._batches.input_lengths(sequences).max()), _LEAST_INPUT_TOKENS)
    parts = []
    for start in range(0, len(sequences), self._rows):
      part = sequences[start : start + self._rows]
      identities = np.zeros((self._rows, 2), np.uint32)
      identities[: len(part)] = part
      parts.append(
        self._sampler(
          params,
          self._batches.inputs(part, self._rows, length),
          step=step,
          examples_B=identities[:, 0],
          kinds_B=identities[:, 1],
        )
      )
    # Only the last part has rows that are padding.
    tokens_BT = np.concatenate([np.asarray(part) for part in parts])
    return SampledTargets.of(sequences, tokens_BT, self._eos_id)

  def batch(self, params: Any, step: int) -> tuple[Arrays, dict[str, float]]:
    """Returns the sampled batch of step n on the mesh, and the figures of its targets."""
    sampled = self.sample(params, step)
    packing = self._batches.pack(sampled)
    fill = functools.partial(self._batches.fill, packing, sampled)
    return self._trainer.to_mesh(packing.shape.rows, fill), sampled.figures()


def sampled_kinds(config: RunConfig) -> tuple[int, ...]:
  """Returns the target kinds that are sampled: those of OnPolicyConfig that are trained on."""
  trained = (kind for kind, _ in kind_shares(config.loss.alpha))
  return tuple(kind for kind in trained if TARGET_KINDS[kind] in config.on_policy.kinds)


def max_tokens(config: RunConfig) -> int:
  """Returns the number of tokens at which samples are cut off."""
  return min(config.on_policy.max_tokens, config.data.max_output_tokens)


def check_on_policy(config: RunConfig) -> None:
  """Raises UserError if targets are to be sampled and could not be trained on."""
  share = config.on_policy.share
  if not share:
    return
  if config.signals.model is None:
    given = ""
    if config.signals.logits is not None:
      given = f", and --teacher-logits {config.signals.logits} knows the rows' own targets alone"
    raise UserError(
      f"--kind on-policy has a teacher compare what the student writes in a share of {share:g} of "
      f"the steps{given}; give --teacher-model with a T5-family teacher"
    )
  if not any(source == "teacher" for _, source, _ in chosen_kinds(config).values()):
    raise UserError(
      f"OnPolicyConfig.share {share:g}: no kind of this run compares the student with "
      f"--teacher-model {config.signals.model}; add --kind response"
    )
  if not sampled_kinds(config):
    raise UserError(
      f"OnPolicyConfig.kinds {config.on_policy.kinds}: LossConfig.alpha {config.loss.alpha:g} "
      f"trains on none of them; choose from {TARGET_KINDS}"
    )
