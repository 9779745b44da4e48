"""What a student's training inputs look like: template, lengths, words, unknown pieces.

Written into the student's folder when training begins, so that later inputs can be compared with
it (student/drift.py).
"""

import collections
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dss_jax.config.schema import LABEL, RATIONALE
from dss_jax.data.report.counters import LabelCounter
from dss_jax.data.sources import EXPLAIN_PREFIX, PREDICT_PREFIX
from dss_jax.data.token_store import TokenStore
from dss_jax.data.vocabularies import Vocabulary
from dss_jax.errors import UserError
from dss_jax.storage.atomic import write_text
from dss_jax.storage.files import reason

INPUTS = "inputs.json"

# What fewer rows share may be chance.
MIN_ROWS = 20
# What so many rows share is the template; the others lack a part of it.
_SHARE = 0.995
_SAMPLE_ROWS = 1000
_MAX_PARTS = 50
_MAX_PART_CHARACTERS = 200
_MAX_END_WORDS = 100
_MAX_WORDS = 5000
_MAX_COUNTED_WORDS = 200_000
# Lengths, and shares of unknown pieces and rare words, beyond this share of the rows are outliers.
_OUTLIERS = 0.001
_SHOWN_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)

# The name of a field, or a sign that separates fields: "Text:", "(a)", "[SEP]", "###", "->".
_MARKER = re.compile(
  r"(?<!\S)(?:[^\s:]{1,40}:|[(\[<][^\s()\[\]<>]{1,20}[)\]>]|[#=>|*~_+/\\-]+)(?!\S)"
)
# Chinese and Japanese are written without spaces: a character counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]+")


@dataclasses.dataclass(frozen=True)
class Template:
  """What almost all inputs have, in their order; runs of spaces and line breaks count as one space.

  Attributes:
    opening: the words that they begin with.
    parts: the names of fields and fixed lines after it.
    closing: the words that they end with.
    is_ordered: whether the parts always come in this order.
    filled: which of the gaps always have a text: gap 0 is before the first part, the last one
      before the closing. Empty if the parts are not ordered.
  """

  opening: str = ""
  parts: tuple[str, ...] = ()
  closing: str = ""
  is_ordered: bool = True
  filled: tuple[int, ...] = ()

  def missing(self, text: str) -> list[str]:
    """Returns what a text with single spaces lacks."""
    missing = [part for part in self.parts if part not in text]
    if not text.startswith(self.opening):
      missing.insert(0, self.opening)
    if not text.endswith(self.closing):
      missing.append(self.closing)
    return missing

  def gaps(self, text: str) -> list[str] | None:
    """Returns the texts between the parts of a text that has all; None if in another order."""
    place, gaps = len(self.opening), []
    for part in self.parts:
      found = text.find(part, place)
      if found < 0:
        return None
      gaps.append(text[place:found].strip())
      place = found + len(part)
    gaps.append(text[place : max(place, len(text) - len(self.closing))].strip())
    return gaps


@dataclasses.dataclass(frozen=True)
class InputProfile:
  """What the inputs of a training run look like.

  Attributes:
    rows: their number.
    tokens: quantiles of their lengths, with prefix and end mark: "min", "p0.1", ..., "max".
    unknown_share: the largest share of unknown pieces in an input, without outliers.
    words: the most frequent words, in lower case, each in two rows or more.
    rare_share: the largest share of other words in an input, without outliers; each input is
      judged by the words of the other rows.
    labels: the labels, if they are a few classes.
  """

  rows: int
  tokens: dict[str, int]
  unknown_share: float
  template: Template
  words: tuple[str, ...]
  rare_share: float
  labels: tuple[str, ...] | None


def single_spaced(text: str) -> str:
  return " ".join(text.split())


def words_of(text: str) -> list[str]:
  """Returns the words of a text in lower case, without digits and signs."""
  return _WORD.findall(text.casefold())


def profile_inputs(
  rows: Iterable[dict[str, Any]], store: TokenStore, vocabulary: Vocabulary
) -> InputProfile:
  """Returns the profile of training rows, which are read four times, and of their token store."""
  template = _find_template(rows)
  words, rare_share = _frequent_words(rows)
  labels = LabelCounter()
  for row in rows:
    if label := row.get("output_text"):
      labels.add(label)
  statistics = labels.result()
  # An example has an input for each of its targets, of equal length but for the prefix.
  kinds = np.where(store.input_lengths[:, LABEL] > 0, LABEL, RATIONALE)
  lengths = store.input_lengths[np.arange(len(kinds)), kinds]
  prefixes = {LABEL: PREDICT_PREFIX, RATIONALE: EXPLAIN_PREFIX}
  # The prefix and the end mark are in all inputs, and no part of their text.
  fixed = {kind: len(vocabulary.encode(prefix)) + 1 for kind, prefix in prefixes.items()}
  unknown = [
    np.count_nonzero(store.input_tokens(example, kind) == vocabulary.unk_id)
    / max(length - fixed[kind], 1)
    for example, (kind, length) in enumerate(zip(kinds.tolist(), lengths.tolist(), strict=True))
  ]
  return InputProfile(
    rows=len(lengths),
    tokens=_quantiles(lengths),
    unknown_share=min(_largest(unknown), 1.0),
    template=template,
    words=words,
    rare_share=rare_share,
    labels=tuple(label for label, _ in statistics.most_common) if _are_few(statistics) else None,
  )


def write_profile(folder: pathlib.Path, profile: InputProfile) -> None:
  text = json.dumps(dataclasses.asdict(profile), indent=1, ensure_ascii=False)
  write_text(folder / INPUTS, text + "\n")


def read_profile(folder: pathlib.Path) -> InputProfile | None:
  """Reads the profile in a student's folder; None if it was trained before there were any."""
  path = folder / INPUTS
  try:
    values = json.loads(path.read_text(encoding="utf-8"))
    template = Template(**_with_tuples(values.pop("template")))
    return InputProfile(template=template, **_with_tuples(values))
  except FileNotFoundError:
    return None
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError(
      f"{path}: cannot be read ({reason(error)}); restore it from a copy, or delete it to use the"
      " student without comparing inputs with those it was trained on"
    ) from None


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
  return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _are_few(statistics: Any) -> bool:
  return statistics.are_classes and statistics.distinct == len(statistics.most_common)


def _quantiles(lengths: np.ndarray) -> dict[str, int]:
  shares = {f"p{100 * share:g}": share for share in _SHOWN_QUANTILES}
  shares = {"min": 0.0, "p0.1": _OUTLIERS, **shares, "p99.9": 1 - _OUTLIERS, "max": 1.0}
  ordered = np.sort(lengths)
  return {name: int(ordered[_rank(share, len(ordered))]) for name, share in shares.items()}


def _rank(share: float, count: int) -> int:
  """Returns the index of a quantile among so many sorted values, the outer one of two."""
  exact = share * (count - 1)
  return math.floor(exact) if share < 0.5 else math.ceil(exact)


def _largest(shares: Sequence[float]) -> float:
  """Returns the largest value without outliers."""
  return sorted(shares)[_rank(1 - _OUTLIERS, len(shares))] if shares else 0.0


def _frequent_words(rows: Iterable[dict[str, Any]]) -> tuple[tuple[str, ...], float]:
  """Returns the most frequent words, and the largest share of others in a row."""
  counts: collections.Counter[str] = collections.Counter()
  for row in rows:
    for word in set(words_of(row["input_text"])):
      if word in counts or len(counts) < _MAX_COUNTED_WORDS:
        counts[word] += 1
  kept = {word: count for word, count in counts.most_common(_MAX_WORDS) if count > 1}
  shares = []
  for row in rows:
    words = words_of(row["input_text"])
    if words:
      # Of a word in two rows, one alone would be left without this row.
      shares.append(sum(kept.get(word, 0) < 3 for word in words) / len(words))
  return tuple(kept), _largest(shares)


def _find_template(rows: Iterable[dict[str, Any]]) -> Template:
  """Returns what nearly all rows share: candidates are of the first rows, and counted in all."""
  sample: list[str] = []
  total = 0
  for total, row in enumerate(rows, start=1):
    if total <= _SAMPLE_ROWS:
      sample.append(row["input_text"])
  if total < MIN_ROWS:
    return Template()
  candidate = _sample_template(sample)
  lacking: collections.Counter[str] = collections.Counter()
  empty: collections.Counter[int] = collections.Counter()
  rows_lacking = disordered = 0
  for row in rows:
    text = single_spaced(row["input_text"])
    missing = candidate.missing(text)
    lacking.update(missing)
    rows_lacking += bool(missing)
    gaps = [] if missing else candidate.gaps(text)
    disordered += gaps is None
    empty.update(number for number, gap in enumerate(gaps or ()) if not gap)
  most = (1 - _SHARE) * total
  if rows_lacking > 2 * most:
    # Together too many rows lack something, though few lack each part.
    most = 0

  def kept(part: str) -> bool:
    return lacking[part] <= most

  opening, closing = (end if kept(end) else "" for end in (candidate.opening, candidate.closing))
  parts = tuple(filter(kept, candidate.parts))
  is_ordered = disordered <= most
  filled: tuple[int, ...] = ()
  # The gaps were counted between all parts of the candidate.
  if is_ordered and (opening, parts, closing) == (
    candidate.opening,
    candidate.parts,
    candidate.closing,
  ):
    filled = tuple(number for number in range(len(parts) + 1) if empty[number] <= most)
  return Template(opening, parts, closing, is_ordered, filled)


def _sample_template(texts: Sequence[str]) -> Template:
  """Returns the template of a few rows, with its parts in their usual order."""
  least = _SHARE * len(texts)
  spaced = [single_spaced(text) for text in texts]
  opening = _shared_start([text.split(" ", _MAX_END_WORDS) for text in spaced], least)
  closing = _shared_start([text.split(" ")[: -_MAX_END_WORDS - 1 : -1] for text in spaced], least)
  # Names of fields are parts of their own, so that they may be seen to have changed places.
  begin = " ".join(opening)
  if first := _MARKER.search(begin):
    begin = begin[: first.start()].rstrip()
  end = " ".join(reversed(closing))
  found: collections.Counter[str] = collections.Counter()
  for text in texts:
    found.update(set(_parts_of(text)))
  parts = [part for part, rows in found.items() if rows >= least and part not in begin + end]
  parts = [part for part in parts if not any(part != other and part in other for other in parts)]
  places = {part: np.median([text.find(part) for text in spaced]) for part in parts}
  return Template(begin, tuple(sorted(parts, key=lambda part: places[part])[:_MAX_PARTS]), end)


def _parts_of(text: str) -> Iterable[str]:
  yield from _MARKER.findall(text)
  for line in text.splitlines():
    if 0 < len(line) <= _MAX_PART_CHARACTERS and line.strip():
      yield single_spaced(line)


def _shared_start(lists: Sequence[Sequence[str]], least: float) -> list[str]:
  """Returns the longest start that so many of the lists share."""
  start: list[str] = []
  while len(lists) >= least and len(start) < _MAX_END_WORDS:
    following = collections.Counter(words[len(start)] for words in lists if len(words) > len(start))
    if not following:
      break
    word, _ = following.most_common(1)[0]
    lists = [words for words in lists if len(words) > len(start) and words[len(start)] == word]
    if len(lists) < least:
      break
    start.append(word)
  return start
