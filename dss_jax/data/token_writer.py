"""Writes a token store's files from the SeqIO tasks of a source."""

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dss_jax.config.schema import TARGET_KINDS
from dss_jax.data.sources import RowSource, summarise
from dss_jax.data.token_files import (
  FEATURES,
  META,
  ROWS,
  file_sum,
  json_digest,
  starts_file,
  tokens_file,
)
from dss_jax.data.vocabularies import Vocabulary
from dss_jax.errors import UserError
from dss_jax.storage.atomic import synced_file


class _Written(NamedTuple):
  """What was written for one target kind.

  Attributes:
    rows: [n] the rows that have the kind, as indices into the source's rows, ascending.
    lengths: {feature: [n] tokens stored}.
    truncated: {feature: sequences that were cut}.
  """

  rows: np.ndarray
  lengths: dict[str, np.ndarray]
  truncated: dict[str, int]


def write_tokens(
  folder: pathlib.Path,
  key: str,
  source: RowSource,
  vocabulary: Vocabulary,
  sequence_length: dict[str, int],
  progress: Callable[[int], None] | None = None,
) -> None:
  """Tokenises `source` into the files of a store under `folder`, streaming.

  Memory holds the tokens of a few hundred rows at a time, and a few numbers per row.

  Raises:
    UserError: the rows have changed since the source was made.
  """
  from dss_jax.data import seqio_tasks

  seqio_tasks.register(source, vocabulary)
  written: list[_Written] = []
  try:
    for kind, name in zip(TARGET_KINDS, seqio_tasks.task_names(source), strict=True):
      before = sum(len(one.rows) for one in written)
      written.append(_write_kind(folder, kind, name, sequence_length, before, progress))
  except Exception as error:
    # A file that changes meanwhile can fail anywhere in TensorFlow's threads.
    _refuse_changed_rows(source, error)
    raise
  _refuse_changed_rows(source)
  rows = np.union1d(written[0].rows, written[1].rows)
  _write_array(folder / ROWS, rows)
  longest = {}
  for kind, one in zip(TARGET_KINDS, written, strict=True):
    longest[kind] = int(one.lengths["targets"].max(initial=0))
    for feature in FEATURES:
      lengths = np.zeros(len(rows), np.int64)
      lengths[np.searchsorted(rows, one.rows)] = one.lengths[feature]
      _write_array(folder / starts_file(kind, feature), np.concatenate([[0], np.cumsum(lengths)]))
  meta = {
    "fingerprint": key,
    "num_examples": len(rows),
    "truncated": {kind: one.truncated for kind, one in zip(TARGET_KINDS, written, strict=True)},
    "longest_target_tokens": longest,
    "unusable_rows": source.summary.unusable,
    "files": {path.name: file_sum(path) for path in sorted(folder.iterdir())},
  }
  with synced_file(folder / META) as file:
    file.write(json.dumps({**meta, "checksum": json_digest(meta)}, indent=2).encode("utf-8"))


def _write_kind(
  folder: pathlib.Path,
  kind: str,
  name: str,
  sequence_length: dict[str, int],
  before: int,
  progress: Callable[[int], None] | None,
) -> _Written:
  """Writes the token files of one kind; reports `before` + the sequences done to `progress`."""
  from dss_jax.data import seqio_tasks

  batches: list[_Written] = []
  done = before
  with (
    synced_file(folder / tokens_file(kind, "inputs")) as inputs,
    synced_file(folder / tokens_file(kind, "targets")) as targets,
  ):
    files = {"inputs": inputs, "targets": targets}
    for batch in seqio_tasks.token_batches(name, sequence_length):
      for feature, file in files.items():
        file.write(batch.tokens[feature].astype(np.int32).tobytes())
      truncated = {
        feature: int(np.sum(batch.full_lengths[feature] > sequence_length[feature]))
        for feature in FEATURES
      }
      batches.append(_Written(batch.rows, batch.lengths, truncated))
      done += len(batch.rows)
      if progress is not None:
        progress(done)
  none = np.zeros(0, np.int64)
  return _Written(
    rows=np.concatenate([none, *(batch.rows for batch in batches)]),
    lengths={
      feature: np.concatenate([none, *(batch.lengths[feature] for batch in batches)])
      for feature in FEATURES
    },
    truncated={feature: sum(batch.truncated[feature] for batch in batches) for feature in FEATURES},
  )


def _write_array(path: pathlib.Path, array: np.ndarray) -> None:
  with synced_file(path) as file:
    file.write(array.astype(np.int64).tobytes())


def _refuse_changed_rows(source: RowSource, cause: Exception | None = None) -> None:
  if summarise(source.rows).digest != source.digest:
    raise UserError(
      f"{source.name}: the rows changed while they were tokenised; start again when the file"
      " is complete"
    ) from cause
