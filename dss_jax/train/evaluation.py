"""Teacher-forced evaluation over a whole set, as sums divided once."""

import functools
from typing import Any

from dss_jax.data.batches import EvalBatches
from dss_jax.losses.step_by_step import TaskSums
from dss_jax.train.step import Trainer


def evaluate(trainer: Trainer, params: Any, batches: EvalBatches) -> TaskSums:
  """Loss and right next tokens of each task, over every example of the set."""
  total: TaskSums | None = None
  for packing, sequences in batches.packs:
    fill = functools.partial(batches.packed.fill, packing, sequences)
    batch = trainer.to_mesh(packing.shape.rows, fill)
    sums = trainer.eval_step(params, batch)
    total = sums if total is None else total + sums
  assert total is not None
  return total
