"""Evaluation goes through the whole set once, whatever the batches."""

import numpy as np
import pytest

from dss_jax.config.schema import TARGET_KINDS, LossConfig
from dss_jax.data.batches import EvalBatches
from dss_jax.losses.cross_entropy import TokenLosses
from dss_jax.losses.objective import make_objective
from dss_jax.train.evaluation import evaluate


class Judge:
  """In a Trainer's place: a target's loss is its id, and even ids are right."""

  def to_mesh(self, rows, fill):
    return fill(slice(0, rows))

  def eval_step(self, params, batch):
    targets = batch["decoder_target_tokens"]
    losses = TokenLosses(targets.astype(np.float32), (targets % 2 == 0).astype(np.float32))
    return make_objective(LossConfig()).sums(losses, batch)


@pytest.mark.parametrize("batch_size", [4, 9, 100])
def test_every_token_counts_once(make_store, row_costs, batch_size):
  store = make_store(9)
  batches = EvalBatches(store, batch_size=batch_size, kinds=(0, 1), costs=row_costs)
  sums = evaluate(Judge(), None, batches)
  for kind, name in enumerate(TARGET_KINDS):
    loss, right = sums[f"{name}/loss"], sums[f"{name}/accuracy"]
    ids = np.concatenate([pairs[kind][1] for pairs in store.pairs if pairs[kind] is not None])
    assert (float(loss.total), float(loss.weight)) == (ids.sum(), ids.size)
    assert (float(right.total), float(right.weight)) == ((ids % 2 == 0).sum(), ids.size)
