"""Teacher-forced evaluation of a whole data set."""

import functools
from typing import Any

from dss_jax.data.batches import EvalBatches
from dss_jax.losses.objective import Sums, add_sums
from dss_jax.train.step import Trainer


def evaluate(trainer: Trainer, params: Any, batches: EvalBatches) -> Sums:
  """Returns the objective's sums over every example of the set."""
  total: Sums | None = None
  for packing, sequences in batches.packs:
    fill = functools.partial(batches.packed.fill, packing, sequences)
    batch = trainer.to_mesh(packing.shape.rows, fill)
    sums = trainer.eval_step(params, batch)
    total = sums if total is None else add_sums(total, sums)
  assert total is not None
  return total
