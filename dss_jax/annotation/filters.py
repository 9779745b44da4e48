"""Concerns: possible defects of a rationale or a vote, each with a name to filter by."""

import dataclasses
import re

from dss_jax.annotation.prompts import Prompt
from dss_jax.data.rationale_checks import ends_mid_sentence, mentions

CONCERNS = {
  "agreement": "fewer of the samples agree than --min-agreement",
  "gold": "the teacher's label is not the row's own",
  "length": "the rationale is shorter or longer than --rationale-words",
  "unmentioned": "the rationale does not mention its label",
  "cut-off": "the rationale ends in the middle of a sentence",
  "echo": "the rationale repeats the input or the prompt",
  "several-answers": "the answer states several labels; the last was taken",
}

_NOT_WORD = re.compile(r"[\W_]+")
# A shorter text may be in the prompt by chance.
_MIN_ECHO_CHARACTERS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """Thresholds of concerns.

  Attributes:
    min_agreement: minimum share of samples with the winning label.
    rationale_words: minimum and maximum number of words of a rationale.
  """

  min_agreement: float = 0.5
  rationale_words: tuple[int, int] = (3, 300)


class RationaleFilter:
  """Finds the concerns of a rationale, given the prompt."""

  def __init__(self, prompt: Prompt, limits: Limits):
    self._limits = limits
    texts = [prompt.instruction]
    for exemplar in prompt.exemplars:
      texts += [exemplar.input, exemplar.rationale or ""]
    self._prompt_words = f" {' '.join(map(_words, texts))} "

  def concerns(
    self, rationale: str, label: str | None, input_text: str, cut_off: bool
  ) -> list[str]:
    """Returns the names of the concerns, in the order of CONCERNS.

    Args:
      label: the label of the rationale, if there is one.
      cut_off: whether the answer reached max_tokens.
    """
    found = []
    fewest, most = self._limits.rationale_words
    if not fewest <= len(rationale.split()) <= most:
      found.append("length")
    if label is not None and not mentions(rationale, label):
      found.append("unmentioned")
    if cut_off or ends_mid_sentence(rationale):
      found.append("cut-off")
    if self._is_echo(rationale, input_text):
      found.append("echo")
    return found

  def _is_echo(self, rationale: str, input_text: str) -> bool:
    words = f" {_words(rationale)} "
    if len(words) < _MIN_ECHO_CHARACTERS:
      return False
    input_words = f" {_words(input_text)} "
    return (
      words in input_words
      or words in self._prompt_words
      or (len(input_words) >= _MIN_ECHO_CHARACTERS and input_words in words)
    )


def _words(text: str) -> str:
  return _NOT_WORD.sub(" ", text.casefold()).strip()
