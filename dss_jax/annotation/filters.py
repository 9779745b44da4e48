"""What may be wrong with a rationale or a vote, each concern with a name to filter by."""

import dataclasses
import re

from dss_jax.annotation.prompts import Prompt
from dss_jax.data.rationale_checks import ends_mid_sentence, mentions

CONCERNS = {
  "agreement": "fewer of the samples agree than --min-agreement",
  "gold": "the teacher's label is not the row's own",
  "length": "the rationale is shorter or longer than --rationale-words",
  "unmentioned": "the rationale never mentions its label",
  "cut-off": "the rationale ends in the middle of a sentence",
  "echo": "the rationale is the input or the prompt come back",
}

_NOT_WORD = re.compile(r"[\W_]+")
# Of a text shorter than this, standing in the prompt is chance.
_ECHO_CHARACTERS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """What counts as a concern.

  Attributes:
    min_agreement: the least share of samples that must give the label.
    rationale_words: the fewest and the most words of a rationale.
  """

  min_agreement: float = 0.5
  rationale_words: tuple[int, int] = (3, 300)


class RationaleFilter:
  """Finds the concerns of single rationales under one prompt."""

  def __init__(self, prompt: Prompt, limits: Limits):
    self._limits = limits
    told = [prompt.instruction]
    for exemplar in prompt.exemplars:
      told += [exemplar.input, exemplar.rationale or ""]
    self._told = f" {' '.join(map(_words, told))} "

  def concerns(
    self, rationale: str, label: str | None, input_text: str, cut_off: bool
  ) -> list[str]:
    """The names of the concerns, in the order of CONCERNS.

    Args:
      label: what the rationale should lead to; None where there is no label.
      cut_off: whether the teacher was stopped by its limit of tokens.
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
    if len(words) < _ECHO_CHARACTERS:
      return False
    given = f" {_words(input_text)} "
    return (
      words in given or words in self._told or (len(given) >= _ECHO_CHARACTERS and given in words)
    )


def _words(text: str) -> str:
  return _NOT_WORD.sub(" ", text.casefold()).strip()
