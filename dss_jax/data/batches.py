"""Step n's batch as a pure function of (seed, n): example numbers, packed rows, arrays.

Every host computes the same example numbers and the same packing, and fills the rows of its own
devices only.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from dss_jax.config.schema import TARGET_KINDS
from dss_jax.data.packing import Costs, Packer, Packing, RowShape

Batch = dict[str, np.ndarray]

# The shapes are planned from this many batches; from fewer, but at least 8, if they are large.
PLANNING_BATCHES = 128
PLANNING_EXAMPLES = 4096


class Sequences(Protocol):
  """The tokens of (input, target) pairs: an example has one for each of its target kinds."""

  def input_tokens(self, example: int, kind: int) -> np.ndarray: ...

  def target_tokens(self, example: int, kind: int) -> np.ndarray: ...


class SequenceStore(Sequences, Protocol):
  """Tokenised examples: each has an (input, target) pair for its label and its rationale."""

  @property
  def input_lengths(self) -> np.ndarray:
    """The number of tokens of each input, int64 [examples, 2]; 0 if the pair is absent."""

  @property
  def target_lengths(self) -> np.ndarray:
    """The number of tokens of each target, likewise."""


@dataclasses.dataclass(frozen=True)
class TargetFeature:
  """A further array of batches with values of each target position, such as a teacher's logits.

  Attributes:
    name: its key in a batch.
    shape: of one position's values; () for a number.
    dtype: of the array; padding is 0.
    values: (example, kind) -> the values at the positions of its target, [tokens, *shape].
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  values: Callable[[int, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class BatchLayout:
  """Which arrays batches have, beside those that all have (see PackedBatches).

  Attributes:
    shared_starts: the decoder's start token for each kind, with a shared encoder; None for an
      input for each target.
    sequence_ids: whether batches have them.
    features: further arrays of the target positions.
  """

  shared_starts: tuple[int, int] | None = None
  sequence_ids: bool = False
  features: Sequence[TargetFeature] = ()


TOKENS_ALONE = BatchLayout()


def example_numbers(step: int, *, batch_size: int, num_examples: int, seed: int) -> np.ndarray:
  """Returns the examples of a step, int64 [batch_size].

  Step n takes positions n * batch_size onwards of an endless stream in which every epoch is a
  permutation of all examples.
  """
  positions = np.arange(step * batch_size, (step + 1) * batch_size)
  epochs, places = np.divmod(positions, num_examples)
  return np.array(
    [
      _permutation(seed, int(epoch), num_examples)[place]
      for epoch, place in zip(epochs, places, strict=True)
    ]
  )


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  # Philox is counter-based: its stream depends on the key alone, on every platform.
  generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
  return generator.permutation(num_examples)


class PackedBatches:
  """Packs the examples of a store into batches.

  A batch is a dict of arrays over R rows, L input and M target positions:
    encoder_input_tokens, encoder_segment_ids: int32 [R, L]
    decoder_input_tokens, decoder_target_tokens, decoder_segment_ids: int32 [R, M]
    decoder_loss_weights: float32 [R, M], on real targets 1 or the example's weight
    decoder_target_kinds: int32 [R, M], 0 for the label and 1 for the rationale
  Segment ids count from 1 within a row; 0 is padding. A target reads the input of its own number.

  With a shared encoder (data/shared_encoder.py) an example has one input, that of its first
  target, which all its targets in the same row read:
    decoder_cross_segment_ids: int32 [R, M], the encoder segment that each target position reads

  On demand also
    encoder_sequence_ids, decoder_sequence_ids: int32 [R, L] and [R, M], 1 + 2 * e + kind of the
      batch's example e, which counts each example of the store once; 0 is padding. An input that
      several targets read has the number of the first.

  Further features are arrays [R, M, *feature.shape].
  """

  def __init__(
    self,
    store: SequenceStore,
    *,
    kinds: Sequence[int],
    planned_for: Sequence[np.ndarray],
    costs: Costs,
    row_multiple: int = 1,
    length_multiple: int = 8,
    example_weights: np.ndarray | None = None,
    layout: BatchLayout = TOKENS_ALONE,
  ):
    """Plans the shapes.

    Args:
      kinds: LABEL and/or RATIONALE: which pairs of an example are used.
      planned_for: example numbers of typical batches.
      costs: the cost of rows, by which cheap shapes are chosen.
      row_multiple: rows come in multiples of this.
      length_multiple: row lengths are multiples of this.
      example_weights: the weight of each example of the store; None for 1.
      layout: of the batches; its features are of the store's targets.
    """
    self._store = store
    self._kinds = kinds
    self.example_weights = example_weights
    self.layout = layout
    sample = [self._lengths(self.sequences(examples)) for examples in planned_for]
    self.packer = Packer(
      sample, costs=costs, row_multiple=row_multiple, length_multiple=length_multiple
    )
    # Real and total positions so far, of inputs and of targets, for the padding shares.
    self._positions = np.zeros(4)

  def pack(self, examples: np.ndarray) -> tuple[Packing, list[tuple[int, int]]]:
    """Returns the rows of a batch, and the (example, kind) of each sequence number in them."""
    sequences = self.sequences(examples)
    inputs, targets = self._lengths(sequences)
    packing = self.packer.pack((inputs, targets))
    if self.layout.shared_starts is not None:
      groups = self._groups(sequences)
      members = [[n for group in row for n in groups[group]] for row in packing.members]
      packing = packing._replace(members=members)
    rows, input_tokens, target_tokens = packing.shape
    self._positions += [
      inputs.sum(), rows * input_tokens, targets.sum(), rows * target_tokens
    ]  # fmt: skip
    return packing, sequences

  def shape_of(self, examples: np.ndarray) -> RowShape:
    """Returns the shape of a batch of the examples, without counting it in the padding shares."""
    return self.packer.pack(self._lengths(self.sequences(examples))).shape

  def fill(
    self, packing: Packing, sequences: list[tuple[int, int]], rows: slice = slice(None)
  ) -> Batch:
    """Returns the arrays of the given rows of a packed batch."""
    return filled_rows(self._store, packing, sequences, rows, self.layout, self.example_weights)

  def padding_shares(self) -> dict[str, float]:
    """Returns the shares of input and target positions that were padding so far."""
    inputs, padded_inputs, targets, padded_targets = np.maximum(self._positions, 1)
    return {
      "inputs": float(1 - inputs / padded_inputs),
      "targets": float(1 - targets / padded_targets),
    }

  def sequences(self, examples: np.ndarray) -> list[tuple[int, int]]:
    """Returns the (example, kind) of each sequence, with a shared encoder example by example."""
    pairs: Iterable[tuple[int, int]]
    if self.layout.shared_starts is None:
      pairs = ((int(example), kind) for kind in self._kinds for example in examples)
    else:
      pairs = ((int(example), kind) for example in examples for kind in sorted(self._kinds))
    return [pair for pair in pairs if self._store.target_lengths[pair] > 0]

  def _groups(self, sequences: list[tuple[int, int]]) -> list[list[int]]:
    """Returns the numbers of the sequences that are packed together, since they have one input."""
    groups: list[list[int]] = []
    for number in range(len(sequences)):
      if _shares_input(sequences, number):
        groups[-1].append(number)
      else:
        groups.append([number])
    return groups

  def _lengths(self, sequences: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lengths of inputs and of targets, with a shared encoder those of an example."""
    examples, kinds = np.array(sequences).T
    inputs = self._store.input_lengths[examples, kinds]
    targets = self._store.target_lengths[examples, kinds]
    if self.layout.shared_starts is None:
      return inputs, targets
    firsts = [group[0] for group in self._groups(sequences)]
    return inputs[firsts], np.add.reduceat(targets, firsts)


def usable_examples(store: SequenceStore, kinds: Sequence[int]) -> np.ndarray:
  """Returns the examples that have a pair of at least one of the kinds, int64 [N]."""
  return np.flatnonzero((np.asarray(store.target_lengths)[:, list(kinds)] > 0).any(axis=1))


class TrainBatches:
  """The batches of a training run, by step."""

  def __init__(
    self,
    store: SequenceStore,
    *,
    batch_size: int,
    seed: int,
    kinds: Sequence[int],
    costs: Costs,
    row_multiple: int = 1,
    length_multiple: int = 8,
    example_weights: np.ndarray | None = None,
    layout: BatchLayout = TOKENS_ALONE,
  ):
    self._batch_size = batch_size
    self._seed = seed
    self.examples = usable_examples(store, kinds)
    planning_batches = min(PLANNING_BATCHES, max(PLANNING_EXAMPLES // batch_size, 8))
    self.packed = PackedBatches(
      store,
      kinds=kinds,
      planned_for=[self._numbers(step) for step in range(planning_batches)],
      costs=costs,
      row_multiple=row_multiple,
      length_multiple=length_multiple,
      example_weights=example_weights,
      layout=layout,
    )

  def pack(self, step: int) -> tuple[Packing, list[tuple[int, int]]]:
    """Returns the packed rows of step n, counted from 0."""
    return self.packed.pack(self._numbers(step))

  def sequences(self, step: int) -> list[tuple[int, int]]:
    """Returns the (example, kind) of each sequence of step n, counted from 0."""
    return self.packed.sequences(self._numbers(step))

  def shapes(self, steps: Iterable[int]) -> list[RowShape]:
    """Returns the distinct shapes of the steps' batches in order."""
    return list(dict.fromkeys(self.packed.shape_of(self._numbers(step)) for step in steps))

  def _numbers(self, step: int) -> np.ndarray:
    numbers = example_numbers(
      step, batch_size=self._batch_size, num_examples=len(self.examples), seed=self._seed
    )
    return self.examples[numbers]


class EvalBatches:
  """Batches of every example of a store, once each, in a fixed order."""

  def __init__(
    self,
    store: SequenceStore,
    *,
    batch_size: int,
    kinds: Sequence[int],
    costs: Costs,
    row_multiple: int = 1,
    length_multiple: int = 8,
    layout: BatchLayout = TOKENS_ALONE,
  ):
    examples = usable_examples(store, kinds)
    self._store = store
    self.groups = [
      examples[start : start + batch_size] for start in range(0, len(examples), batch_size)
    ]
    self.packed = PackedBatches(
      store,
      kinds=kinds,
      planned_for=self.groups,
      costs=costs,
      row_multiple=row_multiple,
      length_multiple=length_multiple,
      layout=layout,
    )

  @functools.cached_property
  def packs(self) -> list[tuple[Packing, list[tuple[int, int]]]]:
    """The packed rows of every batch, the same at every evaluation."""
    return [self.packed.pack(group) for group in self.groups]

  def shapes(self) -> list[RowShape]:
    """Returns the distinct shapes of the batches in order."""
    return list(dict.fromkeys(packing.shape for packing, _ in self.packs))

  @functools.cached_property
  def target_lengths(self) -> np.ndarray:
    """The number of tokens of each target, int64 [examples, 2]; 0 if the pair is absent."""
    return np.asarray(self._store.target_lengths)


def filled_rows(
  tokens_of: Sequences,
  packing: Packing,
  sequences: list[tuple[int, int]],
  rows: slice,
  layout: BatchLayout = TOKENS_ALONE,
  example_weights: np.ndarray | None = None,
) -> Batch:
  """Returns the arrays of the given rows of a packed batch, as PackedBatches describes them.

  Args:
    sequences: the (example, kind) of each sequence number in the rows.
    layout: its features are of these sequences.
    example_weights: None for 1.
  """
  shared_starts = layout.shared_starts
  is_shared = shared_starts is not None
  members = packing.members[rows]
  batch = empty_batch(packing.shape._replace(rows=len(members)), layout)
  # Every host has all sequences of the batch, and so counts its examples alike.
  examples = dict.fromkeys(example for example, _ in sequences)
  places = {example: place for place, example in enumerate(examples)}
  for row, numbers in enumerate(members):
    start_input = start_target = source = 0
    for segment, number in enumerate(numbers, start=1):
      example, kind = sequences[number]
      sequence_id = 1 + len(TARGET_KINDS) * places[example] + kind
      if not (is_shared and _shares_input(sequences, number)):
        source += 1
        tokens = tokens_of.input_tokens(example, kind)
        here = slice(start_input, start_input + len(tokens))
        batch["encoder_input_tokens"][row, here] = tokens
        batch["encoder_segment_ids"][row, here] = source
        if layout.sequence_ids:
          batch["encoder_sequence_ids"][row, here] = sequence_id
        start_input = here.stop
      tokens = tokens_of.target_tokens(example, kind)
      here = slice(start_target, start_target + len(tokens))
      batch["decoder_target_tokens"][row, here] = tokens
      # The decoder sees the target shifted right; the pad token starts it, as T5 was trained.
      batch["decoder_input_tokens"][row, here.start + 1 : here.stop] = tokens[:-1]
      batch["decoder_segment_ids"][row, here] = segment
      if shared_starts is not None:
        batch["decoder_input_tokens"][row, here.start] = shared_starts[kind]
        batch["decoder_cross_segment_ids"][row, here] = source
      weight = 1.0 if example_weights is None else example_weights[example]
      batch["decoder_loss_weights"][row, here] = weight
      batch["decoder_target_kinds"][row, here] = kind
      if layout.sequence_ids:
        batch["decoder_sequence_ids"][row, here] = sequence_id
      for feature in layout.features:
        batch[feature.name][row, here] = feature.values(example, kind)
      start_target = here.stop
  return batch


def _shares_input(sequences: list[tuple[int, int]], number: int) -> bool:
  """Returns whether a sequence reads the input of the one before it, with a shared encoder.

  The same example may follow itself, in a batch that is larger than the data set.
  """
  if not number:
    return False
  (before, earlier_kind), (example, kind) = sequences[number - 1], sequences[number]
  return before == example and earlier_kind < kind


def empty_batch(shape: RowShape, layout: BatchLayout = TOKENS_ALONE) -> Batch:
  """Returns a batch of padding."""
  rows, inputs, targets = shape
  encoder, decoder = (rows, inputs), (rows, targets)
  batch = {
    "encoder_input_tokens": np.zeros(encoder, np.int32),
    "encoder_segment_ids": np.zeros(encoder, np.int32),
    "decoder_input_tokens": np.zeros(decoder, np.int32),
    "decoder_target_tokens": np.zeros(decoder, np.int32),
    "decoder_segment_ids": np.zeros(decoder, np.int32),
    "decoder_loss_weights": np.zeros(decoder, np.float32),
    "decoder_target_kinds": np.zeros(decoder, np.int32),
  }
  if layout.shared_starts is not None:
    batch["decoder_cross_segment_ids"] = np.zeros(decoder, np.int32)
  for feature in layout.features:
    batch[feature.name] = np.zeros((*decoder, *feature.shape), feature.dtype)
  if layout.sequence_ids:
    batch["encoder_sequence_ids"] = np.zeros(encoder, np.int32)
    batch["decoder_sequence_ids"] = np.zeros(decoder, np.int32)
  return batch
