"""Teacher-forced evaluation of a whole data set: its sums, and the figures of each sequence."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from dss_jax.config.schema import TARGET_KINDS
from dss_jax.data.batches import EvalBatches
from dss_jax.data.packing import Packing
from dss_jax.losses.base import LossSum
from dss_jax.losses.cross_entropy import TokenLosses
from dss_jax.losses.objective import Sums, add_sums
from dss_jax.train.step import Trainer


class SequenceFigures(NamedTuple):
  """The figures of each target of one kind, in the order of the examples.

  Attributes:
    examples: the example of each, int64 [N].
    loss: the cross-entropy summed over its tokens, float64 [N]: minus its log-likelihood.
    correct, tokens: its correct tokens and all of them, int64 [N], the end token included.
  """

  examples: np.ndarray
  loss: np.ndarray
  correct: np.ndarray
  tokens: np.ndarray

  @property
  def right(self) -> np.ndarray:
    """Whether all tokens are correct, bool [N]: then greedy decoding writes this very target."""
    return self.correct == self.tokens


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The results of an evaluation, the same in every process.

  Attributes:
    sums: the objective's sums on the host, with `<kind>/sequence_accuracy`: the targets whose
      tokens are all correct, of all targets of the kind.
    sequences: the figures of each target, by the name of the kind.
  """

  sums: Sums
  sequences: dict[str, SequenceFigures]


def evaluate(trainer: Trainer, params: Any, batches: EvalBatches) -> Evaluation:
  """Evaluates every example of the set once; order and figures do not depend on the batches."""
  total: Sums | None = None
  parts = []
  pending: tuple[Packing, list[tuple[int, int]], TokenLosses] | None = None
  for packing, sequences in batches.packs:
    fill = functools.partial(batches.packed.fill, packing, sequences)
    batch = trainer.to_mesh(packing.shape.rows, fill)
    sums, losses = trainer.eval_step(params, batch)
    total = sums if total is None else add_sums(total, sums)
    # Reads the figures of the batch before, while the devices compute this one.
    if pending is not None:
      parts.append(_by_sequence(batches, *pending))
    pending = packing, sequences, losses
  assert total is not None
  assert pending is not None
  parts.append(_by_sequence(batches, *pending))
  figures = np.concatenate(parts)
  by_kind = {name: _of_kind(figures, kind) for kind, name in enumerate(TARGET_KINDS)}
  found = {name: each for name, each in by_kind.items() if len(each.examples)}
  return Evaluation(
    {
      **jax.device_get(total),
      **{f"{name}/sequence_accuracy": _share(each) for name, each in found.items()},
    },
    found,
  )


def _by_sequence(
  batches: EvalBatches, packing: Packing, sequences: list[tuple[int, int]], losses: TokenLosses
) -> np.ndarray:
  """Returns (example, kind, loss, correct, tokens) of each sequence of a batch, float64 [N, 5]."""
  loss_RM, correct_RM = jax.device_get((losses.loss, losses.correct))
  figures = []
  for row, members in enumerate(packing.members):
    start = 0
    for number in members:
      example, kind = sequences[number]
      stop = start + int(batches.target_lengths[example, kind])
      loss = loss_RM[row, start:stop].sum(dtype=np.float64)
      correct = correct_RM[row, start:stop].sum(dtype=np.float64)
      figures.append((example, kind, loss, correct, stop - start))
      start = stop
  return np.array(figures, np.float64)


def _of_kind(figures: np.ndarray, kind: int) -> SequenceFigures:
  """Returns the figures of one kind, sorted by example."""
  chosen = figures[figures[:, 1] == kind]
  examples, _, loss, correct, tokens = chosen[np.argsort(chosen[:, 0])].T
  return SequenceFigures(
    examples.astype(np.int64), loss, correct.astype(np.int64), tokens.astype(np.int64)
  )


def _share(figures: SequenceFigures) -> LossSum:
  """Returns the targets that are wholly right, of all."""
  right, targets = np.float32(figures.right.sum()), np.float32(len(figures.right))
  return LossSum(right, targets)  # type: ignore[arg-type]
