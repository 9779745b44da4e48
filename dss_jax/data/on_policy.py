"""Batches of targets that the student has sampled, in place of the rows' own (on-policy)."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from dss_jax.data.batches import Batch, BatchLayout, SequenceStore, TrainBatches, filled_rows
from dss_jax.data.packing import Costs, Packer, Packing, SequenceLengths

# Tells the draws of steps from the shuffling of examples, whose keys are [seed, epoch].
_STREAM = 2**63

# The shapes are planned from this many steps, each with short and with full-length targets.
PLANNING_STEPS = 16
MAX_SHAPES = 4


def is_on_policy(step: int, *, share: float, seed: int) -> bool:
  """Returns whether the targets of step n are sampled: so for this share of all steps.

  It is a function of (seed, n) alone, and true for a greater share where it is for a smaller one.
  """
  # Every step has a block of the counter of its own.
  generator = np.random.Generator(np.random.Philox(key=[seed, _STREAM], counter=step))
  return bool(generator.random() < share)


@dataclasses.dataclass(frozen=True)
class SampledTargets:
  """Targets of the sequences of a batch.

  Attributes:
    sequences: the (example, kind) of each.
    targets: their tokens. One that was cut off has no end token, an empty one nothing else.
    eos_id: the end token.
  """

  sequences: list[tuple[int, int]]
  targets: list[np.ndarray]
  eos_id: int

  @classmethod
  def of(
    cls, sequences: list[tuple[int, int]], tokens_BT: np.ndarray, eos_id: int
  ) -> "SampledTargets":
    """Takes the tokens of each sequence up to its end token, or all if it was cut off.

    Args:
      tokens_BT: a target for each sequence, in their order; further rows are left out.
    """
    targets = []
    for tokens_T in tokens_BT[: len(sequences)]:
      ends = np.flatnonzero(tokens_T == eos_id)
      targets.append(tokens_T[: ends[0] + 1] if len(ends) else tokens_T)
    return cls(sequences, targets, eos_id)

  @property
  def lengths(self) -> np.ndarray:
    """The number of tokens of each target, int64 [N]."""
    return np.array([len(tokens) for tokens in self.targets], np.int64)

  def figures(self) -> dict[str, float]:
    """Returns how the targets end, and their mean number of tokens, the end token included."""
    ended = np.array([tokens[-1] == self.eos_id for tokens in self.targets])
    return {
      "ended": float(ended.mean()),
      "empty": float((ended & (self.lengths == 1)).mean()),
      "cut_off": float((~ended).mean()),
      "target_tokens": float(self.lengths.mean()),
    }


class OnPolicyBatches:
  """Packs the inputs of a training step with sampled targets.

  The batches are those of PackedBatches, of a few shapes that fit targets of any length up to
  max_tokens.
  """

  def __init__(
    self,
    store: SequenceStore,
    train_batches: TrainBatches,
    *,
    kinds: Sequence[int],
    max_tokens: int,
    costs: Costs,
    row_multiple: int = 1,
    length_multiple: int = 8,
  ):
    """Plans the shapes.

    Args:
      train_batches: of the same store; says which examples a step has.
      kinds: LABEL and/or RATIONALE: which targets are sampled; some row has one of them.
      max_tokens: of a sampled target.
      costs, row_multiple, length_multiple: as for PackedBatches.
    """
    self._store = store
    self._train_batches = train_batches
    self._kinds = kinds
    sample: list[SequenceLengths] = []
    with_sequences = filter(None, map(self.sequences, itertools.count()))
    for sequences in itertools.islice(with_sequences, PLANNING_STEPS):
      inputs = self.input_lengths(sequences)
      examples, of_kinds = np.array(sequences).T
      own = np.minimum(store.target_lengths[examples, of_kinds], max_tokens)
      sample += [(inputs, own), (inputs, np.full_like(own, max_tokens))]
    self._packer = Packer(
      sample,
      costs=costs,
      row_multiple=row_multiple,
      length_multiple=length_multiple,
      max_shapes=MAX_SHAPES,
    )

  def sequences(self, step: int) -> list[tuple[int, int]]:
    """Returns the (example, kind) of each sequence of step n; none if no row has such a kind."""
    return [each for each in self._train_batches.sequences(step) if each[1] in self._kinds]

  def input_lengths(self, sequences: list[tuple[int, int]]) -> np.ndarray:
    examples, kinds = np.array(sequences).T
    return self._store.input_lengths[examples, kinds]

  def inputs(self, sequences: list[tuple[int, int]], rows: int, length: int) -> np.ndarray:
    """Returns the inputs, one a row, padded to int32 [rows, length]."""
    inputs_BL = np.zeros((rows, length), np.int32)
    for row, (example, kind) in enumerate(sequences):
      tokens = self._store.input_tokens(example, kind)
      inputs_BL[row, : len(tokens)] = tokens
    return inputs_BL

  def pack(self, sampled: SampledTargets) -> Packing:
    """Returns the rows of a batch; `fill` returns their arrays."""
    return self._packer.pack((self.input_lengths(sampled.sequences), sampled.lengths))

  def fill(self, packing: Packing, sampled: SampledTargets, rows: slice = slice(None)) -> Batch:
    """Returns the arrays of the given rows of a packed batch."""
    packed = self._train_batches.packed
    return filled_rows(
      _Pairs(self._store, sampled),
      packing,
      sampled.sequences,
      rows,
      # Further features are of the rows' own targets.
      BatchLayout(sequence_ids=packed.layout.sequence_ids),
      packed.example_weights,
    )


class _Pairs:
  """The inputs of a store with sampled targets."""

  def __init__(self, store: SequenceStore, sampled: SampledTargets):
    self.input_tokens = store.input_tokens
    # An example that a step has twice is sampled with the same random bits.
    self._targets = dict(zip(sampled.sequences, sampled.targets, strict=True))

  def target_tokens(self, example: int, kind: int) -> np.ndarray:
    return self._targets[example, kind]
