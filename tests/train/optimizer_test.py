"""Schedules by hand, and each update rule against its formula."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dss_jax.config.schema import OptimizerConfig
from dss_jax.train.optimizer import learning_rate, make_optimizer


@pytest.mark.parametrize(
  ("config", "rates"),
  [
    # Adafactor's default, whatever the step.
    ({}, {0: 1e-3, 299: 1e-3}),
    ({"learning_rate_multiplier": 0.5}, {0: 5e-4, 10_000: 5e-4}),
    # Linear: 5e-5 at step 0, half of it half-way, 0 at the end and beyond.
    (
      {"base_learning_rate": 5e-5, "schedule": "linear"},
      {0: 5e-5, 150: 2.5e-5, 299: 5e-5 / 300, 300: 0.0, 400: 0.0},
    ),
    # The first of four warm-up steps takes a quarter, the fourth the whole.
    (
      {"warmup_steps": 4, "base_learning_rate": 1.0},
      {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 1.0, 299: 1.0},
    ),
    # Then 296 steps fall from 1 to 0.
    (
      {"warmup_steps": 4, "base_learning_rate": 1.0, "schedule": "linear"},
      {0: 0.25, 3: 1.0, 4: 1.0, 152: 0.5, 300: 0.0},
    ),
    ({"warmup_steps": 1, "base_learning_rate": 1.0}, {0: 1.0, 1: 1.0}),
    ({"warmup_steps": 300, "base_learning_rate": 1.0, "schedule": "linear"}, {0: 1 / 300, 299: 1}),
  ],
)
def test_schedules_by_hand(config, rates):
  schedule = learning_rate(OptimizerConfig(**config), train_steps=300)
  for step, rate in rates.items():
    np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, atol=1e-9)


PARAMS = {"kernel": np.array([[3.0, -4.0], [0.0, 0.5]], np.float32)}
GRADIENT = {"kernel": np.array([[0.3, -0.1], [0.2, 0.0]], np.float32)}


def updates(config, *, gradients=(GRADIENT,), train_steps=300):
  """The last of the updates that a rule makes of some gradients."""
  optimizer = make_optimizer(OptimizerConfig(**config), train_steps)
  state = optimizer.init(PARAMS)
  for gradient in gradients:
    update, state = optimizer.update(gradient, state, PARAMS)
  return update["kernel"]


def test_adamw_by_its_formula():
  """Two updates: moments with beta 0.9 and 0.999, corrected for their start; decay on top."""
  config = {"name": "adamw", "base_learning_rate": 0.1, "weight_decay": 0.01, "clip_norm": None}
  second = {"kernel": np.array([[-0.2, 0.4], [0.1, 0.3]], np.float32)}
  got = updates(config, gradients=(GRADIENT, second))
  g1, g2 = GRADIENT["kernel"], second["kernel"]
  mean = (0.9 * 0.1 * g1 + 0.1 * g2) / (1 - 0.9**2)
  square = (0.999 * 0.001 * g1**2 + 0.001 * g2**2) / (1 - 0.999**2)
  want = -0.1 * (mean / (np.sqrt(square) + 1e-8) + 0.01 * PARAMS["kernel"])
  np.testing.assert_allclose(got, want, rtol=1e-4)


def test_adafactor_by_its_formula():
  """The first update: gradient over its size, so of RMS about 1; times the weights' RMS."""
  got = updates({"base_learning_rate": 0.1, "clip_norm": None})
  gradient = GRADIENT["kernel"]
  direction = gradient / np.sqrt(gradient**2 + 1e-30)
  direction /= max(1.0, np.sqrt(np.mean(direction**2)))
  rms = np.sqrt(np.mean(PARAMS["kernel"] ** 2))
  np.testing.assert_allclose(got, -0.1 * rms * direction, rtol=1e-5)


def test_adafactor_factors_large_matrices():
  optimizer = make_optimizer(OptimizerConfig(), 300)
  state = optimizer.init({"kernel": jnp.zeros((256, 512))})
  sizes = [leaf.size for leaf in optax.tree.get_all_with_path(state, "v_row")[0][1].values()]
  sizes += [leaf.size for leaf in optax.tree.get_all_with_path(state, "v_col")[0][1].values()]
  assert sorted(sizes) == [256, 512]


@pytest.mark.parametrize(
  ("config", "direct"),
  [
    ({"name": "adamw", "weight_decay": 0.1}, optax.adamw(1e-3, weight_decay=0.1)),
    ({}, optax.adafactor(1e-3)),
  ],
)
def test_optax_alone_makes_the_same_update(config, direct):
  state = direct.init(PARAMS)
  want, _ = direct.update(GRADIENT, state, PARAMS)
  np.testing.assert_allclose(updates({**config, "clip_norm": None}), want["kernel"], rtol=1e-6)


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_weight_decay_is_times_the_learning_rate(name):
  """At the second of four warm-up steps, half the rate: half of 0.1 * 0.01 of each weight."""
  config = {"name": name, "base_learning_rate": 0.1, "warmup_steps": 4}
  two = (GRADIENT, GRADIENT)
  decayed = updates({**config, "weight_decay": 0.01}, gradients=two)
  without = updates(config, gradients=two)
  np.testing.assert_allclose(decayed - without, -0.0005 * PARAMS["kernel"], atol=1e-7)


def test_the_multiplier_and_the_schedule_scale_the_update():
  whole = updates({"clip_norm": None})
  half = updates({"clip_norm": None, "learning_rate_multiplier": 0.5})
  np.testing.assert_allclose(half, whole / 2, rtol=1e-6)
  warming = updates({"clip_norm": None, "warmup_steps": 4})
  np.testing.assert_allclose(warming, whole / 4, rtol=1e-6)
  ended = updates(
    {"clip_norm": None, "schedule": "linear"}, gradients=[GRADIENT] * 3, train_steps=2
  )
  np.testing.assert_array_equal(ended, 0.0)


def test_clipping_is_by_the_norm_of_the_whole_gradient():
  """AdamW forgets a gradient's size at its first step; the moments of a second tell."""
  large = {"kernel": 1000 * GRADIENT["kernel"]}
  clipped = updates({"name": "adamw"}, gradients=(large, GRADIENT))
  size = np.linalg.norm(large["kernel"])
  as_one = {"kernel": large["kernel"] / size}
  want = updates({"name": "adamw", "clip_norm": None}, gradients=(as_one, GRADIENT))
  np.testing.assert_allclose(clipped, want, rtol=1e-5)
  unclipped = updates({"name": "adamw", "clip_norm": None}, gradients=(large, GRADIENT))
  assert np.abs(unclipped - clipped).max() > 1e-4
  # Smaller than the limit, it stays as it is.
  two = (GRADIENT, GRADIENT)
  np.testing.assert_allclose(
    updates({"name": "adamw"}, gradients=two),
    updates({"name": "adamw", "clip_norm": None}, gradients=two),
    rtol=1e-6,
  )
