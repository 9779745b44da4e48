"""Finds the statements of the label in an answer: the marker, in the spellings that models use."""

import dataclasses
import functools
import itertools
import re
from typing import NamedTuple

from dss_jax.annotation.label_text import closing_brace

# Words before a marker: "So the final answer:".
_BEFORE = (
  r"(?:(?:so|thus|hence|therefore|then),?[ ]+)?(?:(?:the|my|its)[ ]+)?(?:(?:final|correct)[ ]+)?"
)
_TAG = re.compile(r"<answer>(?P<label>[^<\n]*)</answer>", re.I)
_BOXED = re.compile(r"\\boxed\s*\{")
# A sentence about the answer, not the answer: "The answer is that it rains."
_NOT_A_LABEL = re.compile(r"(?:that|not|because|to be|as follows)\b", re.I)


class Statement(NamedTuple):
  """A place in an answer that states the label.

  Attributes:
    start: where it begins; the rationale ends there.
    label: the text that follows on its line, or on the next one with text.
  """

  start: int
  label: str


@dataclasses.dataclass(frozen=True)
class Marker:
  """The text that the label follows.

  Attributes:
    text: as the prompt shows it.
    any_spelling: whether it may differ in case, emphasis, heading, spaces and colon; whether
      "The answer is X", \\boxed{X} and <answer>X</answer> in the last line count, too.
  """

  text: str
  any_spelling: bool

  def statements(self, answer: str) -> list[Statement]:
    """Returns the statements in the answer, in order."""
    spans = [match.span() for match in self._pattern.finditer(answer)]
    found = [
      Statement(start, _first_line(answer[end:following]))
      for (start, end), (following, _) in itertools.pairwise([*spans, (len(answer), 0)])
    ]
    if self.any_spelling:
      found += [one for one in self._in_last_line(answer) if not found or one.start > spans[-1][0]]
    return found

  @functools.cached_property
  def _word(self) -> str:
    """Returns the marker without colon; "" if it has no letter."""
    word = self.text.strip().rstrip(":：").strip("*_# ")
    return word if any(c.isalpha() for c in word) else ""

  @functools.cached_property
  def _pattern(self) -> re.Pattern[str]:
    exact = re.escape(self.text)
    if not (self.any_spelling and self._word):
      return re.compile(exact)
    # At the beginning of a line or of a sentence.
    words = rf"{_BEFORE}{re.escape(self._word)}(?:[ ]is)?"
    usual = rf"(?:^|(?<=[.!?] ))[ \t>#*_`-]*{words}[ \t*_`]*[:：][*_`]*"
    return re.compile(f"{usual}|{exact}", re.I | re.M)

  @functools.cached_property
  def _sentence(self) -> re.Pattern[str]:
    word = re.escape(self._word)
    start = rf"(?:^|(?<=[.!?,] ))[*_` ]*{_BEFORE}{word}[ ]is[ ]+"
    return re.compile(rf"{start}(?P<label>.+)$", re.I)

  def _in_last_line(self, answer: str) -> list[Statement]:
    """Returns the last statement in the last line that uses no marker, if there is one."""
    text = answer.rstrip()
    start = text.rfind("\n") + 1
    line = text[start:]
    found = []
    for tag in _TAG.finditer(line):
      found.append(Statement(start + tag.start(), tag["label"]))
    for boxed in _BOXED.finditer(line):
      end = closing_brace(line, boxed.end())
      if end >= 0:
        found.append(Statement(start + boxed.start(), line[boxed.end() : end]))
    sentence = self._sentence.search(line) if self._word and not found else None
    if sentence and not _NOT_A_LABEL.match(sentence["label"].strip("*_` ")):
      found.append(Statement(start + sentence.start(), sentence["label"]))
    return found[-1:]


def _first_line(text: str) -> str:
  return text.strip().partition("\n")[0].strip()
