"""Token arrays on disk, made once from the SeqIO tasks and then memory-mapped.

A store is the folder `<cache>/tokens/<fingerprint>/`: for each target kind and feature the tokens
of all examples, concatenated, and their start offsets; the examples' row numbers; `meta.json`.
Opening an existing store imports neither SeqIO nor TensorFlow.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dss_jax.config.schema import TARGET_KINDS
from dss_jax.data.sources import RowSource
from dss_jax.data.token_files import (
  FEATURES,
  FORMAT_VERSION,
  META,
  ROWS,
  file_sum,
  json_digest,
  starts_file,
  tokens_file,
)
from dss_jax.data.token_writer import write_tokens
from dss_jax.data.vocabularies import Vocabulary
from dss_jax.errors import UserError
from dss_jax.storage.atomic import publishing
from dss_jax.storage.cache import cache_folder
from dss_jax.storage.files import reason

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TokenStore:
  """The examples of a source as token ids; an example is a row with a label or a rationale.

  Every input is stored twice, as `predict: x` (LABEL) and `explain: x` (RATIONALE), or with the
  source's other prefixes, and all sequences end in the end token. Input and target of a kind that
  the row lacks are empty. Examples keep the order of the rows.

  Attributes:
    fingerprint: of data, code of the SeqIO tasks, vocabulary and lengths.
    num_examples: number of examples.
    row_numbers: [num_examples] int64, each example's index among the rows of the source.
    input_lengths, target_lengths: [num_examples, 2] int64 tokens, one column per kind, 0 if
      the example lacks the kind.
    truncated: {kind: {"inputs", "targets"}}, sequences that were cut to the lengths.
    longest_target_tokens: {"label", "rationale"}, the longest stored target, end token included.
    unusable_rows: rows of the source with neither label nor rationale.
    example_weights: [num_examples] float32, the weight of each example's tokens in the loss
      (data/agreement.py); None for 1.
  """

  fingerprint: str
  num_examples: int
  row_numbers: np.ndarray
  input_lengths: np.ndarray
  target_lengths: np.ndarray
  truncated: dict[str, dict[str, int]]
  longest_target_tokens: dict[str, int]
  unusable_rows: int
  _tokens: tuple[np.ndarray, ...] = dataclasses.field(repr=False)
  _starts: tuple[np.ndarray, ...] = dataclasses.field(repr=False)
  example_weights: np.ndarray | None = None

  def input_tokens(self, example: int, kind: int) -> np.ndarray:
    """Returns the input of an example for a kind, int32, a read-only view; empty if absent."""
    return self._slice(2 * kind, example)

  def target_tokens(self, example: int, kind: int) -> np.ndarray:
    """Returns the label or the rationale, int32, a read-only view; empty if absent."""
    return self._slice(2 * kind + 1, example)

  def _slice(self, column: int, example: int) -> np.ndarray:
    starts = self._starts[column]
    return self._tokens[column][starts[example] : starts[example + 1]]


def open_token_store(
  source: RowSource,
  vocabulary: Vocabulary,
  *,
  max_input_tokens: int,
  max_output_tokens: int,
  cache_dir: str | os.PathLike[str] | None = None,
  progress: Callable[[int], None] | None = None,
) -> TokenStore:
  """Opens the token store of a source; builds it first if it is missing or damaged.

  The lengths include the end token, which a sequence keeps when it is truncated. Any number of
  processes may open or build the same store at the same time.

  Args:
    cache_dir: where stores are kept; by default DSS_CACHE_DIR, else ~/.cache/dss_jax.
    progress: called while building with the number of sequences that were tokenised so far
      (a row with label and rationale is two).

  Raises:
    UserError: no row has a label or a rationale, the rows changed while they were read, a
      length is under 2, or the cache cannot be written.
  """
  for name, limit in (("input", max_input_tokens), ("output", max_output_tokens)):
    if limit < 2:
      raise UserError(
        f"max_{name}_tokens is {limit}, but it must be at least 2 (a token and the end mark);"
        f" raise --max-{name}-tokens"
      )
  if source.summary.unusable == source.summary.rows:
    raise UserError(
      f"{source.name}: none of the {source.summary.rows} rows has an"
      ' "output_text" or a "rationale"; label some rows first'
    )
  lengths = {"inputs": max_input_tokens, "targets": max_output_tokens}
  key = fingerprint(source, vocabulary, lengths)
  folder = cache_folder("tokens", cache_dir) / key
  try:
    store = _open(folder, key)
    if store is None:
      if folder.exists():
        _log.warning("the token store %s is damaged and is built anew", folder)
      with publishing(folder, is_whole=lambda: _open(folder, key) is not None) as part:
        write_tokens(part, key, source, vocabulary, lengths, progress)
      store = _open(folder, key)
  except OSError as error:
    raise UserError(
      f"the token store {folder} cannot be written or read ({reason(error)});"
      " free some space, or set DSS_CACHE_DIR to a folder that you may write to"
    ) from error
  if store is None:
    raise UserError(
      f"the token store {folder} was damaged right after it was written; check that disk, or"
      " set DSS_CACHE_DIR to a folder on another"
    )
  return store


def fingerprint(source: RowSource, vocabulary: Vocabulary, lengths: dict[str, int]) -> str:
  """Returns the SHA-256 of everything that the tokens depend on."""
  code = pathlib.Path(__file__).with_name("seqio_tasks.py").read_bytes()
  parts = {
    "format": FORMAT_VERSION,
    "data": source.digest,
    "code": hashlib.sha256(code).hexdigest(),
    "prefixes": source.prefixes,
    "vocabulary": vocabulary.digest,
    "lengths": lengths,
  }
  return json_digest(parts)


def _open(folder: pathlib.Path, key: str) -> TokenStore | None:
  """Opens the store in `folder`; None if it is missing or damaged."""
  try:
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    checksum = meta.pop("checksum")
    is_whole = checksum == json_digest(meta) and meta["fingerprint"] == key
    if not is_whole or any(
      file_sum(folder / name) != expected for name, expected in meta["files"].items()
    ):
      return None
  except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
    return None
  columns = [(kind, feature) for kind in TARGET_KINDS for feature in FEATURES]
  begins = tuple(_map(folder / starts_file(*column), np.int64) for column in columns)
  label_inputs, label_targets, rationale_inputs, rationale_targets = map(np.diff, begins)
  return TokenStore(
    fingerprint=key,
    num_examples=meta["num_examples"],
    row_numbers=_map(folder / ROWS, np.int64),
    input_lengths=np.stack([label_inputs, rationale_inputs], axis=1),
    target_lengths=np.stack([label_targets, rationale_targets], axis=1),
    truncated=meta["truncated"],
    longest_target_tokens=meta["longest_target_tokens"],
    unusable_rows=meta["unusable_rows"],
    _tokens=tuple(_map(folder / tokens_file(*column), np.int32) for column in columns),
    _starts=begins,
  )


def _map(path: pathlib.Path, dtype: Any) -> np.ndarray:
  # An empty file cannot be mapped; a source without rationales has some.
  if not path.stat().st_size:
    return np.zeros(0, dtype)
  # A plain array, because slicing np.memmap is several times slower.
  return np.asarray(np.memmap(path, dtype, mode="r"))
