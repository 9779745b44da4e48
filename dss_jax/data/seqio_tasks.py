"""Rows as SeqIO tasks: `predict: x` -> label, `explain: x` -> rationale, and their mixture.

Importing this module imports TensorFlow, so other modules import it where they need it; a
token store that is already built needs neither.
"""

import functools
import itertools
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from dss_jax.config.schema import LABEL, RATIONALE
from dss_jax.data.quiet_import import quiet_import
from dss_jax.data.sources import RowSource
from dss_jax.data.vocabularies import Vocabulary

# Read when TensorFlow is first imported; a user's own setting stays.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with quiet_import():
  import seqio
  import tensorflow as tf

# Accelerators belong to JAX: TensorFlow takes all of a GPU's memory when it sees one.
tf.config.set_visible_devices([], "GPU")

SPLIT = "train"

# TensorFlow pays about half a millisecond each time that it calls Python.
_ROWS_A_CHUNK = 64
_EXAMPLES_A_BATCH = 256


def register(source: RowSource, vocabulary: Vocabulary) -> seqio.Mixture:
  """Registers `<name>_predict`, `<name>_explain` and their mixture `<name>` with SeqIO.

  Each task has the one split "train" and keeps the order of the rows. Its examples hold the
  features inputs and targets (int32, trimmed to the sequence length with the end mark kept),
  their texts under *_pretokenized, `row` (the index of the row among all rows, which pairs a
  row's label and rationale) and inputs_tokens / targets_tokens (the lengths before trimming,
  end mark included). A row without a label is not in the predict task, one without a
  rationale not in the explain task; the mixture holds the tasks that have rows, in
  proportion to them. Whatever was registered under these names before is replaced.

  Raises:
    ValueError: no row has a label or a rationale.
  """
  summary = source.summary
  if not summary.labelled and not summary.with_rationale:
    raise ValueError(f"{source.name}: no row has a label or a rationale")
  predict, explain = task_names(source)
  metric_fns = [_metric_fn(source, vocabulary)]
  feature = seqio.Feature(vocabulary=vocabulary.to_seqio(), add_eos=True, dtype=tf.int32)
  present = []
  for name, prefix, key, count, metrics in (
    (predict, source.prefixes[LABEL], "output_text", summary.labelled, metric_fns),
    (explain, source.prefixes[RATIONALE], "rationale", summary.with_rationale, []),
  ):
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(
        functools.partial(_texts, source=source, key=key),
        splits=[SPLIT],
        num_input_examples={SPLIT: count},
      ),
      preprocessors=[
        functools.partial(_add_prefix, prefix=prefix),
        seqio.preprocessors.tokenize,
        _count_tokens,
        seqio.preprocessors.append_eos_after_trim,
      ],
      output_features={"inputs": feature, "targets": feature},
      metric_fns=metrics,
    )
    if count:
      present.append((name, float(count)))
  seqio.MixtureRegistry.remove(source.name)
  return seqio.MixtureRegistry.add(source.name, present)


def task_names(source: RowSource) -> tuple[str, str]:
  """The names of the predict and the explain task of `source`."""
  return f"{source.name}_predict", f"{source.name}_explain"


class TokenBatch(NamedTuple):
  """The next few examples of a task, n of them.

  Attributes:
    rows: [n] int64, the index of each example's row.
    tokens: {"inputs", "targets"}: the tokens of all n, end to end, int32.
    lengths: {"inputs", "targets"}: [n] tokens of each example.
    full_lengths: the same before trimming.
  """

  rows: np.ndarray
  tokens: dict[str, np.ndarray]
  lengths: dict[str, np.ndarray]
  full_lengths: dict[str, np.ndarray]


def token_batches(name: str, sequence_length: Mapping[str, int]) -> Iterator[TokenBatch]:
  """The examples of a registered task in the order of their rows, trimmed to the lengths."""
  features = ("inputs", "targets")
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    sequence_length=sequence_length, split=SPLIT, shuffle=False, try_in_mem_cache=False
  )
  kept = ("row", *features, *(f"{feature}_tokens" for feature in features))
  dataset = dataset.map(lambda example: {key: example[key] for key in kept})
  for batch in dataset.ragged_batch(_EXAMPLES_A_BATCH):
    yield TokenBatch(
      rows=batch["row"].numpy(),
      tokens={feature: batch[feature].values.numpy() for feature in features},
      lengths={feature: batch[feature].row_lengths().numpy() for feature in features},
      full_lengths={feature: batch[f"{feature}_tokens"].numpy() for feature in features},
    )


def _metric_fn(source: RowSource, vocabulary: Vocabulary):
  """Returns the source's metric of predictions against what the vocabulary can write of targets.

  SeqIO reads a metric's parameter names to see what it wants, so they are spelled here.
  """

  def metric(targets, predictions):
    return source.metric(vocabulary.writable(targets), predictions)

  return metric


def _texts(
  split: str,
  shuffle_files: bool = False,
  seed: int | None = None,
  *,
  source: RowSource,
  key: str,
) -> tf.data.Dataset:
  """{"inputs", "targets", "row"} of the rows that have `key`, in their order."""
  # SeqIO looks for parameters of these names, the seed's where T5X gives it one.
  del split, shuffle_files, seed

  def chunks() -> Iterator[dict[str, list]]:
    numbered = ((i, row) for i, row in enumerate(source.rows) if row.get(key))
    while chunk := list(itertools.islice(numbered, _ROWS_A_CHUNK)):
      yield {
        "inputs": [row["input_text"] for _, row in chunk],
        "targets": [row[key] for _, row in chunk],
        "row": [index for index, _ in chunk],
      }

  return tf.data.Dataset.from_generator(
    chunks,
    output_signature={
      "inputs": tf.TensorSpec((None,), tf.string),
      "targets": tf.TensorSpec((None,), tf.string),
      "row": tf.TensorSpec((None,), tf.int64),
    },
  ).unbatch()


@seqio.map_over_dataset
def _add_prefix(example, prefix):
  return {**example, "inputs": tf.strings.join([prefix, example["inputs"]])}


@seqio.map_over_dataset
def _count_tokens(example):
  lengths = {
    f"{feature}_tokens": tf.size(example[feature]) + 1 for feature in ("inputs", "targets")
  }
  return {**example, **lengths}
