"""Drift: inputs that look different from those that a student was trained on.

A student answers inputs of the form of its training inputs, and anything else badly but without
a word. The comparison looks at the text alone, so it is cheap, and it says nothing about answers.
"""

import collections
from collections.abc import Iterable

from dss_jax.data.vocabularies import Vocabulary
from dss_jax.progress import say
from dss_jax.student.input_profile import (
  MIN_ROWS,
  InputProfile,
  read_profile,
  single_spaced,
  words_of,
)
from dss_jax.student.student import Student

# What may be different: a word for headers and metrics, and how a sentence goes on.
TEMPLATE, ORDER, EMPTY, LONGER, SHORTER, UNKNOWN, WORDS = KINDS = (
  "template-missing",
  "fields-reordered",
  "field-empty",
  "longer",
  "shorter",
  "unknown-pieces",
  "unfamiliar-words",
)
_WHAT = {
  TEMPLATE: "lack a part of the training inputs' template",
  ORDER: "have the template's fields in another order",
  EMPTY: "have nothing in a field that is never empty in the training inputs",
  LONGER: "are longer than the training inputs",
  SHORTER: "are shorter than the training inputs",
  UNKNOWN: "have many pieces that the vocabulary does not know",
  WORDS: "have few of the training inputs' words",
}
# Beyond the training inputs' own range: held-out rows of the same data lie a little outside.
_LENGTH_FACTOR = 1.5
_UNKNOWN_MARGIN = 0.05
_RARE_MARGIN = 0.3
_MIN_WORDS = 3
_SHOWN_ROWS = 3
_EXCERPT_CHARACTERS = 60


class DriftDetector:
  """Compares inputs with the profile of a student's training inputs."""

  def __init__(self, profile: InputProfile, vocabulary: Vocabulary, prefix: str):
    """Takes the vocabulary and the prefix that the student's inputs are encoded with."""
    self.profile = profile
    self._vocabulary = vocabulary
    self._fixed_tokens = len(vocabulary.encode(prefix)) + 1
    self._words = frozenset(profile.words)
    self._most_rare = profile.rare_share + (1 - profile.rare_share) * _RARE_MARGIN
    self._most_unknown = profile.unknown_share + _UNKNOWN_MARGIN
    self._longest = profile.tokens["p99.9"] * _LENGTH_FACTOR
    self._shortest = profile.tokens["p0.1"] / _LENGTH_FACTOR

  @classmethod
  def of(cls, student: Student) -> "DriftDetector | None":
    """Returns the detector of a student.

    None if it was trained on too few rows to compare with, or before inputs were profiled.
    """
    profile = read_profile(student.directory)
    if profile is None or profile.rows < MIN_ROWS:
      return None
    return cls(profile, student.vocabulary, student.card["prefixes"]["label"])

  def drift_of(self, input_text: str) -> list[str]:
    """Returns how an input differs from the training inputs: of KINDS, none for one like them."""
    spaced = single_spaced(input_text)
    found = self._template_drift(spaced)
    ids = self._vocabulary.encode(input_text)
    tokens = len(ids) + self._fixed_tokens
    if tokens > self._longest:
      found.append(LONGER)
    if tokens < self._shortest:
      found.append(SHORTER)
    if ids.count(self._vocabulary.unk_id) > self._most_unknown * len(ids):
      found.append(UNKNOWN)
    words = words_of(spaced)
    if len(words) >= _MIN_WORDS:
      rare = sum(word not in self._words for word in words)
      if rare > self._most_rare * len(words):
        found.append(WORDS)
    return found

  def _template_drift(self, spaced: str) -> list[str]:
    template = self.profile.template
    if template.missing(spaced):
      return [TEMPLATE]
    if not template.is_ordered:
      return []
    gaps = template.gaps(spaced)
    if gaps is None:
      return [ORDER]
    return [] if all(gaps[number] for number in template.filled) else [EMPTY]


class DriftCounter:
  """Counts the inputs that differ, and keeps the first of each kind.

  Without a detector it does nothing.

  Attributes:
    rows: the rows so far.
    drifted: those of them that differ in any way.
  """

  def __init__(self, detector: DriftDetector | None):
    self._detector = detector
    self._kinds: collections.Counter[str] = collections.Counter()
    self._first: dict[str, list[int]] = {kind: [] for kind in KINDS}
    self._examples: dict[str, str] = {}
    self.rows = self.drifted = 0

  def add(self, input_texts: Iterable[str]) -> None:
    if self._detector is None:
      return
    for text in input_texts:
      self.rows += 1
      kinds = self._detector.drift_of(text)
      self.drifted += bool(kinds)
      for kind in kinds:
        self._kinds[kind] += 1
        if len(self._first[kind]) < _SHOWN_ROWS:
          self._first[kind].append(self.rows)
        self._examples.setdefault(kind, single_spaced(text))

  def lines(self) -> list[str]:
    """Returns the warning: how many inputs differ, and a line for each way."""
    if not self.drifted:
      return []
    lines = [
      f"warning: {self.drifted:,} of {self.rows:,} inputs look different from those that the"
      " student was trained on, so expect worse answers:"
    ]
    for kind in KINDS:
      if count := self._kinds[kind]:
        rows = ", ".join(map(str, self._first[kind])) + (", ..." if count > _SHOWN_ROWS else "")
        lines.append(
          f"  {count:,} {_WHAT[kind]}{self._detail(kind)} (row{'s'[: count > 1]} {rows}:"
          f" {_excerpt(self._examples[kind])})"
        )
    return lines

  def say(self) -> None:
    for line in self.lines():
      say(line)

  def _detail(self, kind: str) -> str:
    assert self._detector is not None
    profile = self._detector.profile
    if kind in (LONGER, SHORTER):
      return f", which have {profile.tokens['min']} to {profile.tokens['max']} tokens"
    if kind != TEMPLATE:
      return ""
    return f", such as {_excerpt(profile.template.missing(self._examples[kind])[0])}"


def _excerpt(text: str) -> str:
  return repr(text if len(text) <= _EXCERPT_CHARACTERS else f"{text[:_EXCERPT_CHARACTERS]}...")
