"""The tokens of an answer as texts, each with the likely tokens that stood beside it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from dss_jax.student.questions import Alternatives


@dataclasses.dataclass(frozen=True)
class ChosenToken:
  """A token of an answer.

  Attributes:
    text: what it adds to the answer; `</s>` for the end mark.
    offset: the number of characters before it.
    alternatives: the texts and log-probabilities of the most likely tokens at its position, the
      most likely one first; the chosen one need not be among them.
  """

  text: str
  offset: int
  log_probability: float
  alternatives: list[tuple[str, float]]

  def likeliest(self) -> dict[str, float]:
    """Returns the alternatives by text; of equal texts, the most likely one."""
    found: dict[str, float] = {}
    for text, log_probability in self.alternatives:
      found.setdefault(text, log_probability)
    return found


class ChosenTokens:
  """Takes the tokens of one answer as they are written, and gives their texts."""

  def __init__(self, texts_after: Callable[[Sequence[int], Sequence[int]], list[str]]):
    """Begins an answer; for `texts_after` see Vocabulary."""
    self._texts_after = texts_after
    self._ids: list[int] = []
    self._offset = 0

  def add(
    self, ids: Sequence[int], log_probabilities: Sequence[float], alternatives: list[Alternatives]
  ) -> list[ChosenToken]:
    """Returns the next tokens; `alternatives` are empty, or one list a token."""
    tokens = []
    for number, (chosen, log_probability) in enumerate(zip(ids, log_probabilities, strict=True)):
      listed = alternatives[number] if alternatives else []
      text, *others = self._texts_after(self._ids, [chosen, *(one for one, _ in listed)])
      named = list(zip(others, (value for _, value in listed), strict=True))
      tokens.append(ChosenToken(text, self._offset, log_probability, named))
      self._ids.append(chosen)
      self._offset += len(text)
    return tokens


def service_form(tokens: Sequence[ChosenToken]) -> dict[str, Any]:
  """Returns the log-probabilities of an answer as the hosted service gives them."""
  form: dict[str, Any] = {
    "tokens": [token.text for token in tokens],
    "tokenLogProbs": [token.log_probability for token in tokens],
  }
  if any(token.alternatives for token in tokens):
    form["topLogProbs"] = [token.likeliest() for token in tokens]
  return form
