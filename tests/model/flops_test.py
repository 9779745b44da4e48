"""The FLOPs of a training step: three forward passes, and what is computed again."""

import dataclasses

import pytest

from dss_jax.config.schema import T5Config
from dss_jax.model.flops import forward_flops, step_flops

MODEL = T5Config(
  emb_dim=8,
  num_heads=2,
  head_dim=4,
  mlp_dim=16,
  num_encoder_layers=3,
  num_decoder_layers=2,
  vocab_size=128,
)
ROWS, INPUTS, TARGETS = 4, 10, 6


@pytest.mark.parametrize("remat", ["none", "minimal", "full"])
def test_a_step_is_three_forward_passes_whatever_is_computed_again(remat):
  flops = step_flops(dataclasses.replace(MODEL, remat=remat), ROWS, INPUTS, TARGETS)
  assert flops.model == 3 * forward_flops(MODEL).of_rows(ROWS, INPUTS, TARGETS)
  assert flops.executed == flops.model + flops.recomputed


def test_what_is_computed_again():
  none, minimal, full = (
    step_flops(dataclasses.replace(MODEL, remat=remat), ROWS, INPUTS, TARGETS).recomputed
    for remat in ("none", "minimal", "full")
  )
  assert none == 0
  # Logits and mixing, 2 operations a multiply-add, of 8 joined: in 3 layers over 10 x 10 pairs,
  # in 2 over 6 x 6 and over 6 x 10.
  assert minimal == ROWS * 4 * 8 * (3 * 100 + 2 * 36 + 2 * 60)
  # Everything but the logits over the vocabulary.
  forward = forward_flops(MODEL).of_rows(ROWS, INPUTS, TARGETS)
  assert full == forward - ROWS * TARGETS * 2 * 8 * 128
