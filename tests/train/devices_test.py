"""Eight devices take the steps that one takes."""

import jax
import numpy as np
import optax
import pytest

from dss_jax.config.schema import LossConfig
from dss_jax.data.batches import TrainBatches
from dss_jax.losses.kinds import make_objective
from dss_jax.train.metrics import named_metrics
from dss_jax.train.step import Trainer

STEPS = 20


@pytest.fixture(scope="module")
def losses(make_config, make_store, mesh_of, row_costs):
  """The metrics of each step on a mesh."""

  def losses(data, model):
    # Dropout is drawn for the rows of a batch: the same rows, whatever the mesh.
    batches = TrainBatches(
      make_store(40, ragged=False),
      batch_size=8,
      seed=1,
      kinds=(0, 1),
      costs=row_costs,
      row_multiple=8,
    )
    config = make_config(model={"dropout_rate": 0.1}, seed=2)
    trainer = Trainer(config, optax.adafactor(1e-2), mesh_of(data, model))
    state, taken = trainer.init_state(), []
    for step in range(STEPS):
      packing, sequences = batches.pack(step)
      rows = packing.shape.rows

      def fill(part, packing=packing, sequences=sequences):
        return batches.packed.fill(packing, sequences, part)

      state, metrics = trainer.train_step(state, trainer.to_mesh(rows, fill))
      taken.append(
        named_metrics(make_objective(LossConfig()), jax.device_get(metrics["sums"]), "train")
      )
    return taken

  return losses


@pytest.fixture(scope="module")
def of_one(losses):
  return losses(1, 1)


@pytest.mark.parametrize(
  "mesh", [(8, 1), pytest.param((2, 4), marks=pytest.mark.slow)], ids=["data", "both axes"]
)
def test_the_losses_of_one_device(losses, of_one, mesh):
  ours = losses(*mesh)
  assert of_one[-1]["train_total_loss"] < 0.95 * of_one[0]["train_total_loss"]
  for mine, other in zip(ours, of_one, strict=True):
    assert mine.keys() == other.keys()
    for name in mine:
      np.testing.assert_allclose(mine[name], other[name], rtol=1e-5, err_msg=name)
