"""The learning-rate schedule and the optax chain."""

import optax

from dss_jax.config.schema import OptimizerConfig
from dss_jax.train.per_layer import per_layer


def learning_rate(config: OptimizerConfig, train_steps: int) -> optax.Schedule:
  """Returns the learning rate of each step, counted from 0.

  base_learning_rate * learning_rate_multiplier after a linear warm-up from 0; then constant,
  or falling linearly to 0 at train_steps (as the published code of the paper does, without
  warm-up).
  """
  peak = config.base_learning_rate * config.learning_rate_multiplier
  decay_steps = max(train_steps - config.warmup_steps, 1)
  after = {
    "constant": lambda: optax.constant_schedule(peak),
    "linear": lambda: optax.linear_schedule(peak, 0.0, decay_steps),
  }[config.schedule]()
  if config.warmup_steps == 0:
    return after
  # Step s of the warm-up uses (s + 1) / warmup_steps, so that step 0 is not lost.
  warmup = optax.linear_schedule(peak / config.warmup_steps, peak, config.warmup_steps - 1)
  return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(
  config: OptimizerConfig, train_steps: int
) -> optax.GradientTransformationExtraArgs:
  """Returns the update rule: clipping by global norm, then Adafactor or AdamW.

  Adafactor (Shazeer and Stern 2018) as T5X fine-tunes: factored second moments with decay
  1 - t^-0.8, updates clipped to RMS 1 and scaled by the parameter's RMS, no momentum. AdamW
  with beta 0.9 and 0.999 and epsilon 1e-8, as the paper's published code. Both
  subtract learning rate * weight_decay times each weight.
  """
  schedule = learning_rate(config, train_steps)
  if config.name == "adafactor":
    decay = config.weight_decay

    def decay_rate(step):
      # optax's Adafactor does not multiply the decay by the learning rate, as its AdamW does.
      return decay * schedule(step)

    rule = per_layer(
      optax.adafactor(
        schedule,
        weight_decay_rate=decay_rate if decay else None,
        multiply_by_parameter_scale=True,
      )
    )
  else:
    rule = optax.adamw(schedule, weight_decay=config.weight_decay)
  if config.clip_norm is None:
    return optax.with_extra_args_support(rule)
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
