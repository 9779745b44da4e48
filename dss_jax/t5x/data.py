"""Data for T5X's trainer: our rows as SeqIO mixtures, and datasets that pair their tasks.

T5X's own `get_dataset` samples from the tasks of a mixture independently, so that the label and
the rationale of an example are rarely in the same batch. These functions replace it; order and
tokens of the examples are those of `dss distill`.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from jax.experimental import multihost_utils
from t5x import utils

from dss_jax.config.schema import LABEL, RATIONALE, DataConfig
from dss_jax.data.batches import example_numbers, usable_examples
from dss_jax.data.pipeline import sources
from dss_jax.data.seqio_tasks import register, task_names
from dss_jax.data.sources import RowSource
from dss_jax.data.token_store import TokenStore, open_token_store
from dss_jax.data.vocabularies import T5_VOCABULARY, Vocabulary, load_vocabulary
from dss_jax.errors import UserError
from dss_jax.t5x.feature_converter import INPUT_KINDS_FEATURE, TARGET_KINDS_FEATURE

_KINDS = (LABEL, RATIONALE)
_FEATURES = ("inputs", INPUT_KINDS_FEATURE, "targets", TARGET_KINDS_FEATURE)

# Row lengths are multiples of this; on a TPU, of a vector register's eight sublanes.
_LENGTH_MULTIPLE = 8

_log = logging.getLogger(__name__)

# The rows and vocabulary of each mixture that we registered with SeqIO, by name.
_opened: dict[str, tuple[RowSource, Vocabulary]] = {}


def vocabulary(config: DataConfig) -> seqio.Vocabulary:
  """Returns the vocabulary of the model and the tasks; by default T5's own."""
  return _vocabulary(config).to_seqio()


def training_mixture(config: DataConfig) -> str:
  """Registers the rows to train on with SeqIO; returns the name of their mixture.

  Raises UserError if the configuration names no data, or if rows are invalid.
  """
  return _registered(sources(config)[0], config)


def evaluation_mixture(config: DataConfig) -> str:
  """Registers the rows to evaluate on; returns the name of their mixture. Raises as above."""
  return _registered(_evaluation_source(config), config)


def evaluation_task(config: DataConfig) -> str:
  """Registers as evaluation_mixture; returns its label task, for T5X's inference evaluation."""
  source = _evaluation_source(config)
  _registered(source, config)
  return task_names(source)[LABEL]


def _evaluation_source(config: DataConfig) -> RowSource:
  train, evaluation = sources(config)
  if evaluation is None:
    raise UserError(
      "there are no rows to evaluate on; give --gin.EVAL_DATASET=\"'FILE.jsonl'\", or leave "
      "evaluation out with --gin.EVALUATION=None"
    )
  if evaluation.name == train.name:
    # Two files of the same name: the second would replace the first in SeqIO's registry.
    return dataclasses.replace(evaluation, name=f"{evaluation.name}_evaluation")
  return evaluation


def _vocabulary(config: DataConfig) -> Vocabulary:
  return load_vocabulary(T5_VOCABULARY if config.vocabulary is None else config.vocabulary)


def _registered(source: RowSource, config: DataConfig) -> str:
  loaded = _vocabulary(config)
  register(source, loaded)
  _opened[source.name] = source, loaded
  _log.info("%s: %s", source.name, source.report)
  if not source.summary.with_rationale:
    _log.warning("%s: no row has a rationale; its labels alone are used", source.name)
  return source.name


def get_dataset(
  cfg: utils.DatasetConfig,
  shard_id: int,
  num_shards: int,
  feature_converter_cls: Callable[..., seqio.FeatureConverter],
  num_epochs: int | None = None,
  continue_from_last_checkpoint: bool = False,
) -> tf.data.Dataset:
  """Returns batches for T5X's trainer (its `get_dataset_fn`): this host's share of the rows.

  Label and rationale of an example are in one row. Without packing a row has one example, so
  cfg.batch_size is the number of examples; with packing it has as many as fit. Without packing,
  the examples of a batch depend on (cfg.seed, step) alone and are those of `dss distill`, for any
  number of hosts. A saved iterator is a position in that order.

  Args:
    cfg: its mixture_or_task_name comes from training_mixture; task_feature_lengths are the
      longest a sequence may be and, with packing, the shortest a row may be.

  Raises:
    UserError: the mixture is not ours, or the batch does not divide over the hosts.
  """
  if continue_from_last_checkpoint:
    raise UserError("continue_from_last_checkpoint is not for this dataset; set save_dataset")
  if cfg.batch_size % num_shards:
    raise UserError(
      f"BATCH_SIZE is {cfg.batch_size}, but it must be a multiple of {num_shards}, the hosts "
      "that share it; choose another"
    )
  seed = cfg.seed
  if seed is None:
    seed = int(multihost_utils.broadcast_one_to_all(np.random.randint(2**31)))
  examples = _Examples(cfg)
  order = examples.stream(seed if cfg.shuffle else None, num_epochs)
  rows = examples.rows(order.shard(num_shards, shard_id), cfg, feature_converter_cls)
  batches = rows.batch(cfg.batch_size // num_shards, drop_remainder=True)
  return batches.prefetch(tf.data.AUTOTUNE)


def get_evaluation_datasets(
  cfg: utils.DatasetConfig,
  shard_id: int,
  num_shards: int,
  eval_steps: int,
  feature_converter_cls: Callable[..., seqio.FeatureConverter],
) -> Mapping[str, tf.data.Dataset]:
  """Returns the evaluation data for T5X's trainer (its `train_eval_get_dataset_fn`), by mixture.

  Every example occurs once, in the order of the rows; the last batch is completed with empty rows,
  which have no weight. Every host gets the same number of batches, with packing too: each
  computes all rows and takes its own.

  Args:
    eval_steps: the limit of batches; a warning is logged if it leaves out some.

  Raises:
    UserError: as get_dataset does.
  """
  if cfg.batch_size % num_shards:
    raise UserError(
      f"BATCH_SIZE is {cfg.batch_size}, but it must be a multiple of {num_shards}, the hosts "
      "that share it; choose another"
    )
  examples = _Examples(cfg)
  rows = examples.rows(examples.stream(None, 1), cfg, feature_converter_cls)
  all_rows = list(rows.as_numpy_iterator())
  missing = -len(all_rows) % cfg.batch_size
  columns = {
    name: np.stack([row[name] for row in all_rows] + missing * [np.zeros_like(all_rows[0][name])])
    for name in all_rows[0]
  }
  steps = (len(all_rows) + missing) // cfg.batch_size
  if steps > eval_steps:
    _log.warning(
      "%s: EVAL_STEPS = %d of %d evaluation batches are seen", examples.name, eval_steps, steps
    )
  dataset = tf.data.Dataset.from_tensor_slices(columns).shard(num_shards, shard_id)
  dataset = dataset.batch(cfg.batch_size // num_shards, drop_remainder=True).take(eval_steps)
  return {examples.name: dataset}


class _Examples:
  """The tokens of a mixture that we registered."""

  def __init__(self, cfg: utils.DatasetConfig):
    """Raises UserError if the mixture is not ours, or has no rows."""
    self.name = cfg.mixture_or_task_name
    if self.name not in _opened:
      raise UserError(
        f"the mixture is {self.name!r}, but label and rationale are paired for rows of "
        "dss_jax alone; set mixture_or_task_name to @data.training_mixture()"
      )
    lengths = cfg.task_feature_lengths
    self._store: TokenStore = open_token_store(
      *_opened[self.name],
      max_input_tokens=lengths["inputs"],
      max_output_tokens=lengths["targets"],
    )
    self._examples = usable_examples(self._store, _KINDS)
    _log.info("%s: cut to %s: %s", self.name, dict(lengths), self._store.truncated)

  def stream(self, seed: int | None, num_epochs: int | None) -> tf.data.Dataset:
    """Returns example numbers, shuffled in each epoch, or in order if the seed is None."""
    count = len(self._examples)
    end = np.iinfo(np.int64).max if num_epochs is None else num_epochs * count
    dataset = tf.data.Dataset.range(end)

    def number(position: np.int64) -> np.int64:
      place = int(position) % count
      if seed is not None:
        (place,) = example_numbers(int(position), batch_size=1, num_examples=count, seed=seed)
      return np.int64(self._examples[place])

    return _mapped(dataset, number, [tf.int64])

  def rows(
    self,
    numbers: tf.data.Dataset,
    cfg: utils.DatasetConfig,
    feature_converter_cls: Callable[..., seqio.FeatureConverter],
  ) -> tf.data.Dataset:
    """Returns the rows of these examples, made by the feature converter."""
    dataset = _mapped(numbers, self._example, [tf.int32] * len(_FEATURES))

    def named(*arrays: tf.Tensor) -> dict[str, tf.Tensor]:
      return {
        name: tf.ensure_shape(array, [None]) for name, array in zip(_FEATURES, arrays, strict=True)
      }

    converter = feature_converter_cls(
      pack=cfg.pack, use_custom_packing_ops=cfg.use_custom_packing_ops
    )
    return converter(dataset.map(named), self._row_lengths(cfg))

  def _example(self, number: np.int64) -> list[np.ndarray]:
    """Returns the four features of an example, the label's sequence before the rationale's."""
    inputs = [self._store.input_tokens(int(number), kind) for kind in _KINDS]
    targets = [self._store.target_tokens(int(number), kind) for kind in _KINDS]
    sides: list[np.ndarray] = []
    for side in (inputs, targets):
      sides += [
        np.concatenate(side).astype(np.int32),
        np.repeat(np.array(_KINDS, np.int32) + 1, [len(tokens) for tokens in side]),
      ]
    return sides

  def _row_lengths(self, cfg: utils.DatasetConfig) -> dict[str, int]:
    """Returns the smallest lengths that fit every example; with packing, at least those given."""
    lengths = {}
    for name, tokens in (
      ("inputs", self._store.input_lengths),
      ("targets", self._store.target_lengths),
    ):
      longest = int(tokens.sum(axis=1).max())
      needed = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
      lengths[name] = max(needed, cfg.task_feature_lengths[name]) if cfg.pack else needed
    return lengths


def _mapped(
  dataset: tf.data.Dataset, function: Callable[..., Any], types: list[tf.DType]
) -> tf.data.Dataset:
  """Applies a pure Python function to a dataset, so that its iterator can still be saved."""
  output = types if len(types) > 1 else types[0]
  dataset = dataset.map(lambda element: tf.numpy_function(function, [element], output))
  options = tf.data.Options()
  # TensorFlow assumes that every Python function has state.
  options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
  return dataset.with_options(options)
