"""A teacher's next tokens on disk, as features of batches and the signal that they carry."""

import os
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dss_jax.config.schema import DataConfig, RunConfig
from dss_jax.data.batches import TargetFeature
from dss_jax.data.token_store import TokenStore
from dss_jax.data.vocabularies import Vocabulary
from dss_jax.errors import UserError
from dss_jax.losses.kinds import chosen_kinds
from dss_jax.losses.signals import (
  ALIGNED,
  SampledLogits,
  Signal,
  SortedProbabilities,
  SparseLogits,
)
from dss_jax.teachers.logit_files import LogitMeta, check_files


class LogitStore:
  """The next tokens of every target position of a token store, memory-mapped.

  Attributes:
    features: what it adds to batches of the store.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    meta: LogitMeta,
    tokens: TokenStore,
    vocabulary: Vocabulary,
    data: DataConfig,
  ):
    """Maps the files.

    Args:
      meta: the folder's.
      tokens: the run's examples, made with the vocabulary and the lengths of the data.

    Raises UserError if the files are damaged, or belong to other rows, lengths or vocabulary.
    """
    _check_tokens(f"--teacher-logits {os.fspath(folder)}", meta, tokens, vocabulary, data)
    check_files(folder, meta)
    self._settings = settings = meta.settings
    self._starts = np.concatenate([[0], np.cumsum(tokens.target_lengths.reshape(-1))])
    self._columns = {
      name: np.asarray(np.memmap(pathlib.Path(folder) / settings.file_of(name), dtype, mode="r"))
      for name, dtype in settings.columns.items()
    }
    if settings.mode == "draws":
      sizes = self._columns["sizes"]
      # Where the words of each pair begin, and the most words of a position.
      self._words = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[self._starts]
      self._most = int(sizes.max())
    else:
      for name in settings.columns:
        self._columns[name] = self._columns[name].reshape(-1, settings.count)
    self.features = self._features()

  def signal(self, batch: Mapping[str, jax.Array]) -> Signal:
    """Returns the signal that is in a batch's arrays."""
    settings = self._settings
    if settings.mode == "sorted":
      return SortedProbabilities(jnp.exp(batch["teacher_log_probabilities"].astype(jnp.float32)))
    ids = batch["teacher_ids"].astype(jnp.int32)
    if settings.mode == "top-k":
      log_probabilities = batch["teacher_log_probabilities"].astype(jnp.float32)
      return SparseLogits(ids, log_probabilities, settings.words)
    return SampledLogits(
      ids,
      batch["teacher_counts"].astype(jnp.float32),
      batch["teacher_entropies"],
      settings.count,
      settings.words,
    )

  def _features(self) -> tuple[TargetFeature, ...]:
    aligned = TargetFeature(ALIGNED, (), np.dtype(np.float32), self._aligned)
    return (*(self._feature(name) for name in self._columns if name != "sizes"), aligned)

  def _feature(self, column: str) -> TargetFeature:
    array = self._columns[column]
    name = f"teacher_{column}"
    if self._settings.mode == "draws" and column in ("ids", "counts"):
      return TargetFeature(
        name, (self._most,), array.dtype, lambda example, kind: self._ragged(column, example, kind)
      )
    return TargetFeature(
      name, array.shape[1:], array.dtype, lambda example, kind: array[self._slice(example, kind)]
    )

  def _slice(self, example: int, kind: int) -> slice:
    pair = 2 * example + kind
    return slice(self._starts[pair], self._starts[pair + 1])

  def _ragged(self, column: str, example: int, kind: int) -> np.ndarray:
    """Returns the words of each position, filled up with 0."""
    sizes = self._columns["sizes"][self._slice(example, kind)]
    pair = 2 * example + kind
    values = self._columns[column][self._words[pair] : self._words[pair + 1]]
    filled = np.zeros((len(sizes), self._most), values.dtype)
    filled[np.arange(self._most) < sizes[:, None]] = values
    return filled

  def _aligned(self, example: int, kind: int) -> np.ndarray:
    here = self._slice(example, kind)
    if self._settings.mode != "sorted":
      return np.ones(here.stop - here.start, np.float32)
    return np.isfinite(self._columns["log_probabilities"][here, 0]).astype(np.float32)


def check_run(meta: LogitMeta, config: RunConfig) -> None:
  """Raises UserError if a kind of the run cannot be trained from such next tokens."""
  mode, place = meta.settings.mode, f"--teacher-logits {config.signals.logits}"
  for name, (_, source, _) in chosen_kinds(config).items():
    if source != "file":
      continue
    if name == "response" and mode == "sorted":
      raise UserError(
        f"--kind response: {place} is of a teacher with another vocabulary, whose words mean "
        "nothing to the student; give --kind universal"
      )
    divergence = config.loss.response.divergence
    if name == "response" and mode == "draws" and divergence != "forward":
      raise UserError(
        f"ResponseConfig.divergence = {divergence!r}: cannot be estimated from draws, which "
        f"{place} has; set 'forward', or write it with `dss annotate --signal logits --top-k`"
      )
    if name == "universal" and mode == "draws":
      raise UserError(
        f"--kind universal: needs the largest probabilities, and {place} has draws; write it with "
        "`dss annotate --signal logits --top-k`"
      )
    field, temperature = {
      "response": ("ResponseConfig", config.loss.response.temperature),
      "universal": ("UniversalConfig", config.loss.universal.temperature),
    }[name]
    if temperature != meta.settings.temperature:
      raise UserError(
        f"{field}.temperature = {temperature:g}, but {place} was written with --temperature "
        f"{meta.settings.temperature:g}; set the one to the other"
      )


def check_model(meta: LogitMeta, config: RunConfig) -> None:
  """Raises UserError if the student has fewer words than the next tokens are over."""
  rows, words = config.model.vocab_size or 0, meta.settings.words
  if meta.settings.mode != "sorted" and rows < words:
    raise UserError(
      f"T5Config.vocab_size = {rows}: --teacher-logits {config.signals.logits} has the "
      f"probabilities of {words} words; leave it out to have it chosen"
    )


def _check_tokens(
  place: str,
  meta: LogitMeta,
  tokens: TokenStore,
  vocabulary: Vocabulary,
  data: DataConfig,
) -> None:
  settings = meta.settings
  if settings.vocabulary["digest"] != vocabulary.digest:
    raise UserError(
      f"{place}: was written for the vocabulary {settings.vocabulary['spec']} (digest "
      f"{settings.vocabulary['digest'][:8]}), not {vocabulary.spec} ({vocabulary.digest[:8]}); "
      "give the same --vocabulary"
    )
  lengths = settings.lengths
  if (lengths["inputs"], lengths["targets"]) != (data.max_input_tokens, data.max_output_tokens):
    raise UserError(
      f"{place}: was written with --max-input-tokens {lengths['inputs']} and --max-output-tokens "
      f"{lengths['targets']}, not {data.max_input_tokens} and {data.max_output_tokens}; give the "
      "same"
    )
  if settings.tokens != tokens.fingerprint:
    raise UserError(
      f"{place}: was written for other rows; give the same rows, or run "
      "`dss annotate --signal logits` on these"
    )
