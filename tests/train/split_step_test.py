"""A step with weights split over both axes and heads that do not divide, against one device."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from dss_jax.config.schema import MeshConfig
from dss_jax.data.batches import PackedBatches
from dss_jax.data.packing import RowShape
from dss_jax.losses.kinds import make_objective
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.step import Trainer

EXAMPLES = np.arange(8)


@pytest.fixture(scope="module")
def batch(make_store, row_costs):
  batches = PackedBatches(
    make_store(8), kinds=(0, 1), planned_for=[EXAMPLES], costs=row_costs, row_multiple=2
  )
  packing, sequences = batches.pack(EXAMPLES)
  return batches.fill(packing, sequences)


@pytest.fixture(scope="module")
def two_steps(make_config, mesh_of, batch):
  """Loss and gradient's norm of the second step, and the weights after it."""

  def two_steps(mesh, num_heads, **mesh_config):
    model = {"num_heads": num_heads, "scan_layers": True, "remat": "full", "num_encoder_layers": 2}
    config = make_config(model=model, mesh=MeshConfig(**mesh_config))
    trainer = Trainer(config, make_optimizer(config.optimizer, 10), mesh_of(*mesh))
    state = trainer.init_state()
    rows = len(batch["encoder_segment_ids"])
    on_mesh = trainer.to_mesh(rows, lambda part: {name: x[part] for name, x in batch.items()})
    for _ in range(2):
      state, metrics = trainer.train_step(state, on_mesh)
    loss = float(make_objective(config.loss).total(metrics["sums"]))
    return loss, float(metrics["gradient_norm"]), jax.device_get(state.params)

  return two_steps


@pytest.mark.parametrize("num_heads", [6, pytest.param(4, marks=pytest.mark.slow)])
def test_weights_over_both_axes_change_nothing(two_steps, num_heads):
  want = two_steps((1, 1), num_heads)
  got = two_steps((2, 4), num_heads, weights_over_data=True)
  np.testing.assert_allclose(got[:2], want[:2], rtol=1e-5)
  difference = jax.tree.map(np.subtract, got[2], want[2])
  assert optax.tree.norm(difference) < 1e-5 * optax.tree.norm(want[2])


def test_the_step_is_lowered_for_a_shape(make_config, mesh_of, batch):
  """The program that is lowered ahead of time is the one that runs."""
  config = dataclasses.replace(make_config(), mesh=MeshConfig(weights_over_data=True))
  trainer = Trainer(config, make_optimizer(config.optimizer, 10), mesh_of(2, 4))
  rows, inputs = batch["encoder_segment_ids"].shape
  shape = RowShape(rows, inputs, batch["decoder_segment_ids"].shape[1])
  outputs = trainer.lower(shape).out_info
  assert jax.tree.map(lambda leaf: leaf.shape, outputs[0]) == jax.tree.map(
    lambda leaf: leaf.shape, trainer.state_shape
  )
