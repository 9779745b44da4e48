"""Evaluation goes through the whole set once; its figures depend on no batch, mesh or process."""

import numpy as np
import optax
import pytest

from dss_jax.config.schema import TARGET_KINDS, LossConfig
from dss_jax.data.batches import EvalBatches
from dss_jax.losses.cross_entropy import TokenLosses
from dss_jax.losses.kinds import make_objective
from dss_jax.train.evaluation import evaluate
from dss_jax.train.step import Trainer


class Judge:
  """In a Trainer's place: a target's loss is its id, and even ids are right."""

  def to_mesh(self, rows, fill):
    return fill(slice(0, rows))

  def eval_step(self, params, batch):
    targets = batch["decoder_target_tokens"]
    losses = TokenLosses(targets.astype(np.float32), (targets % 2 == 0).astype(np.float32))
    return make_objective(LossConfig()).sums(losses, batch), losses


@pytest.mark.parametrize("batch_size", [4, 9, 100])
def test_every_token_counts_once(make_store, row_costs, batch_size):
  store = make_store(9)
  batches = EvalBatches(store, batch_size=batch_size, kinds=(0, 1), costs=row_costs)
  evaluation = evaluate(Judge(), None, batches)
  sums = evaluation.sums
  for kind, name in enumerate(TARGET_KINDS):
    loss, right = sums[f"{name}/loss"], sums[f"{name}/accuracy"]
    ids = np.concatenate([pairs[kind][1] for pairs in store.pairs if pairs[kind] is not None])
    assert (float(loss.total), float(loss.weight)) == (ids.sum(), ids.size)
    assert (float(right.total), float(right.weight)) == ((ids % 2 == 0).sum(), ids.size)
    whole = sums[f"{name}/sequence_accuracy"]
    targets = [pairs[kind][1] for pairs in store.pairs if pairs[kind] is not None]
    assert float(whole.weight) == len(targets)
    assert float(whole.total) == sum((target % 2 == 0).all() for target in targets)


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_each_target_has_its_own_figures_in_order(make_store, row_costs, batch_size):
  store = make_store(9)
  # The label of row 4 is missing, and that of row 5 wholly right.
  store.pairs[4][0] = None
  store.pairs[5][0] = (store.pairs[5][0][0], np.array([2, 8, 4], np.int32))
  batches = EvalBatches(store, batch_size=batch_size, kinds=(0, 1), costs=row_costs)
  sequences = evaluate(Judge(), None, batches).sequences
  for kind, name in enumerate(TARGET_KINDS):
    with_target = [number for number, pairs in enumerate(store.pairs) if pairs[kind] is not None]
    targets = [store.pairs[number][kind][1] for number in with_target]
    figures = sequences[name]
    assert figures.examples.tolist() == with_target
    assert figures.loss.tolist() == [target.sum() for target in targets]
    assert figures.correct.tolist() == [(target % 2 == 0).sum() for target in targets]
    assert figures.tokens.tolist() == [len(target) for target in targets]
  assert sequences["label"].right[4]


def test_a_kind_without_targets_has_no_figures(make_store, row_costs):
  batches = EvalBatches(make_store(5), batch_size=5, kinds=(0,), costs=row_costs)
  evaluation = evaluate(Judge(), None, batches)
  assert list(evaluation.sequences) == ["label"]
  assert "rationale/sequence_accuracy" not in evaluation.sums


def test_the_figures_of_eight_devices_and_of_microbatches_are_those_of_one(
  make_store, make_config, row_costs, mesh_of
):
  store = make_store(12)
  found = []
  for mesh, multiple, batch_size in (((1, 1), 1, 12), ((4, 2), 4, 8), ((2, 1), 8, 12)):
    batches = EvalBatches(
      store, batch_size=batch_size, kinds=(0, 1), costs=row_costs, row_multiple=multiple
    )
    trainer = Trainer(make_config(seed=3), optax.sgd(0.1), mesh_of(*mesh))
    found.append(evaluate(trainer, trainer.init_state().params, batches))
  for other in found[1:]:
    for name, figures in found[0].sequences.items():
      theirs = other.sequences[name]
      np.testing.assert_array_equal(theirs.examples, figures.examples)
      np.testing.assert_array_equal(theirs.correct, figures.correct)
      np.testing.assert_allclose(theirs.loss, figures.loss, rtol=1e-5)
  label = found[0].sequences["label"]
  np.testing.assert_allclose(label.loss.sum(), found[0].sums["label/loss"].total, rtol=1e-5)
