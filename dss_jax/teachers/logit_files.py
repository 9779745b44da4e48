"""The files of a teacher's next tokens: their settings, columns and meta.json.

A folder has the target positions of a token store in the order of its examples, of each the label
and then the rationale. A column is one array over them, in one file:

  top-k: ids [tokens, K] and log_probabilities [tokens, K], the likeliest first.
  draws: sizes [tokens], the number of distinct words; ids and counts, of all positions one after
    the other; entropies [tokens].
  sorted: log_probabilities [tokens, K] of a teacher with another vocabulary, whose words mean
    nothing to the student; -inf where it has no position with the same text.

meta.json is written last: a folder without it is not finished.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Literal

import numpy as np

from dss_jax.data.token_files import file_sum, json_digest
from dss_jax.errors import UserError
from dss_jax.storage.files import reason

Mode = Literal["top-k", "draws", "sorted"]

VERSION = 1
META = "meta.json"
# The largest count of one word that uint16 holds.
MOST_DRAWS = 2**16 - 1


@dataclasses.dataclass(frozen=True)
class LogitSettings:
  """Everything that the files depend on.

  Attributes:
    mode: what is kept of each distribution.
    count: K, the words or the draws of a position.
    temperature: the logits are divided by it.
    words: the number of words that the distributions are over.
    seed: of the draws; None without.
    tokens: the fingerprint of the student's token store; teacher_tokens that of the teacher's.
    vocabulary: {"spec", "digest"} of the student's vocabulary.
    lengths: {"inputs", "targets"}, to which the student's sequences were cut.
    teacher: the digest of the teacher.
  """

  mode: Mode
  count: int
  temperature: float
  words: int
  seed: int | None
  tokens: str
  teacher_tokens: str
  vocabulary: Mapping[str, str]
  lengths: Mapping[str, int]
  teacher: str

  @property
  def columns(self) -> dict[str, np.dtype]:
    """The dtype of each column by its name."""
    ids = np.dtype(np.uint16 if self.words <= 2**16 else np.uint32)
    short = np.dtype(np.uint16)
    log_probabilities = np.dtype(np.float16)
    if self.mode == "top-k":
      return {"ids": ids, "log_probabilities": log_probabilities}
    if self.mode == "sorted":
      return {"log_probabilities": log_probabilities}
    entropies = np.dtype(np.float32)
    return {"sizes": short, "ids": ids, "counts": short, "entropies": entropies}

  def file_of(self, column: str) -> str:
    """Returns the name of a column's file."""
    return f"{column}.{self.columns[column].name}"

  def encoded(self, arrays: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """Returns the columns of some positions, from what the reduction gave (train/next_tokens.py).

    Raises:
      ValueError: a number is non-finite.
    """
    ids, values = arrays
    if np.isnan(values).any() or np.isposinf(values).any():
      raise ValueError("non-finite next tokens")
    columns = self.columns
    if self.mode == "draws":
      return {**_distinct(ids, columns), "entropies": values.astype(np.float32)}
    # Log probabilities beyond the range stay finite; -inf marks positions without a teacher's.
    low = np.finfo(np.float16).min
    kept = np.where(np.isneginf(values), -np.inf, np.maximum(values, low))
    encoded = {"ids": ids.astype(columns.get("ids", ids.dtype))}
    encoded["log_probabilities"] = kept.astype(np.float16)
    return {name: encoded[name] for name in columns}


def _distinct(ids: np.ndarray, columns: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
  """Returns the distinct words of each position's draws, ascending, and how often each is."""
  ordered = np.sort(ids, axis=1)
  is_first = np.ones(ordered.shape, bool)
  is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
  places = np.flatnonzero(is_first)
  return {
    "sizes": is_first.sum(axis=1).astype(columns["sizes"]),
    "ids": ordered[is_first].astype(columns["ids"]),
    "counts": np.diff(places, append=ordered.size).astype(columns["counts"]),
  }


@dataclasses.dataclass(frozen=True)
class LogitMeta:
  """What meta.json says of a finished folder.

  Attributes:
    teacher_model: the teacher as it was named.
    tokens: number of target positions.
    aligned: number of those with a teacher's distribution.
    files: [size in bytes, CRC-32] of each file.
    digest: of all of it.
  """

  settings: LogitSettings
  teacher_model: str
  tokens: int
  aligned: int
  files: Mapping[str, list[int]]

  @property
  def digest(self) -> str:
    return json_digest(dataclasses.asdict(self))

  @property
  def bytes_per_token(self) -> float:
    return sum(size for size, _ in self.files.values()) / max(self.tokens, 1)

  def to_json(self) -> str:
    values = {"version": VERSION, **dataclasses.asdict(self), "checksum": self.digest}
    return json.dumps(values, indent=2) + "\n"


def read_meta(folder: str | os.PathLike[str]) -> LogitMeta:
  """Reads meta.json; raises UserError if the folder is none of this kind, unfinished or damaged."""
  place = f"--teacher-logits {os.fspath(folder)}"
  again = "run `dss annotate --signal logits` again"
  path = pathlib.Path(folder) / META
  try:
    values = json.loads(path.read_text(encoding="utf-8"))
  except (FileNotFoundError, NotADirectoryError):
    raise UserError(
      f"{place}: has no {META}, so it is no folder of next tokens, or is not finished; {again}"
    ) from None
  except (OSError, ValueError) as error:
    raise UserError(f"{place}: {META} cannot be read as JSON ({reason(error)}); {again}") from None
  version = values.get("version") if isinstance(values, dict) else None
  if version != VERSION:
    raise UserError(f"{place}: {META} is of version {version}, not {VERSION}; {again}")
  try:
    checksum = values.pop("checksum")
    del values["version"]
    meta = LogitMeta(**{**values, "settings": LogitSettings(**values["settings"])})
    is_whole = meta.digest == checksum
  except (TypeError, KeyError):
    is_whole = False
  if not is_whole:
    raise UserError(f"{place}: {META} is damaged; remove the folder, and {again}")
  return meta


def check_files(folder: str | os.PathLike[str], meta: LogitMeta) -> None:
  """Raises UserError, with the file's name, if a file is missing or damaged."""
  for name, expected in meta.files.items():
    with contextlib.suppress(OSError):
      if file_sum(pathlib.Path(folder) / name) == expected:
        continue
    raise UserError(
      f"--teacher-logits {os.fspath(folder)}: {name} is missing or damaged; remove the folder, "
      "and run `dss annotate --signal logits` again"
    )
