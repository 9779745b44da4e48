"""Parses a teacher's answer into rationale and label, or a reason why it has none.

No text raises an exception, and no text yields a label that the rules do not allow. The text is
searched and compared, never evaluated.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from dss_jax.annotation.label_text import plain_label
from dss_jax.annotation.markers import Marker
from dss_jax.data.task_files import Answer, TaskDefinition, UnparsableAnswer
from dss_jax.data.texts import is_blank

# Rationales are a few sentences; a longer text is degenerate.
MAX_ANSWER_CHARACTERS = 32_768
MAX_LABEL_CHARACTERS = 200

_PLACEHOLDER = re.compile(r"[{<\[](label|answer|your answer|the answer)[}>\]]|label", re.I)
# What some servers leave of the end of a chat message.
_END_TOKENS = (
  "<|im_end|>", "<|eot_id|>", "<|end|>", "<|return|>", "<|endoftext|>", "<end_of_turn>", "</s>"
)  # fmt: skip


class Parsed(NamedTuple):
  """The parsed answer.

  Attributes:
    rationale: never blank; None if the answer does not parse.
    label: None if there is no label that the rules allow.
    reason: why the rationale or the label is missing; "" if both are there.
    has_several: whether the answer states several different labels; `label` is the last.
  """

  rationale: str | None
  label: str | None
  reason: str
  has_several: bool = False


@dataclasses.dataclass(frozen=True)
class ParseRules:
  """The rules for parsing answers.

  Attributes:
    marker: the label is the rest of its line; of several, the last counts.
    any_spelling: whether the marker may be spelled as chat models do; see markers.Marker.
    task: its parse_answer replaces the marker, and its same_label compares labels.
    labels: the allowed labels; None allows any text.
    choices: matches the allowed labels in a row's input; the label is the pattern's only group.
    max_label_characters: a longer label is rejected.
  """

  marker: str = "Answer:"
  any_spelling: bool = True
  task: TaskDefinition | None = None
  labels: tuple[str, ...] | None = None
  choices: re.Pattern[str] | None = None
  max_label_characters: int = MAX_LABEL_CHARACTERS

  def same_label(self, first: str, second: str) -> bool:
    """Compares two labels with the task's same_label, else ignoring case and spaces."""
    if self.task is None:
      return _normalised(first) == _normalised(second)
    try:
      return bool(self.task.same_label(first, second))
    # A task file is user code, and may fail on a label of a model.
    except Exception:
      return False

  def parse(
    self, text: str, *, input_text: str, stop: Sequence[str] = (), cut_off: bool = False
  ) -> Parsed:
    """Parses one answer.

    Args:
      text: the teacher's text, as plain_answer returns it.
      input_text: the row's input, which `choices` searches.
      stop: sequences that end the answer, for teachers that do not stop there.
      cut_off: whether a limit or a filter ended the answer. Its label is not taken, because more
        text could have changed it.
    """
    if len(text) > MAX_ANSWER_CHARACTERS:
      return _failure(f"the answer has {len(text):,} characters, over {MAX_ANSWER_CHARACTERS:,}")
    answer, was_stopped = _until_stop(text, (*stop, *_END_TOKENS))
    if is_blank(answer):
      return _failure("the answer is empty")
    try:
      (rationale, label), has_several = self._split(answer, input_text)
    except UnparsableAnswer as error:
      return _failure(_cut(str(error)))
    except Exception as error:
      return _failure(_cut(f"the task's parse_answer raised {type(error).__name__}: {error}"))
    if is_blank(rationale):
      return _failure("there is no reasoning before the answer")
    if label is None:
      return Parsed(rationale, None, "the answer is not a single label")
    if cut_off and not was_stopped:
      return Parsed(rationale, None, "the answer was cut off, which may have changed its label")
    allowed = self._allowed(input_text)
    problem = self._problem(label, allowed)
    if problem:
      return Parsed(rationale, None, problem)
    return Parsed(rationale, self._as_allowed(label, allowed), "", has_several)

  def _split(self, answer: str, input_text: str) -> tuple[Answer, bool]:
    """Returns rationale and label, and whether other labels are stated before."""
    if self.task is not None:
      rationale, label = self.task.parse_answer(answer)
      if not isinstance(rationale, str) or not isinstance(label, str | None):
        raise UnparsableAnswer("the task's parse_answer did not return an Answer of texts")
      return Answer(rationale, label), False
    statements = Marker(self.marker, self.any_spelling).statements(answer)
    if not statements:
      raise UnparsableAnswer(f'no "{self.marker}" in the answer')
    allowed = self._allowed(input_text)
    labels = [self._plain(one.label, allowed) for one in statements]
    if not labels[-1]:
      raise UnparsableAnswer(f'nothing follows "{self.marker}"')
    has_several = len({_normalised(label) for label in labels if label}) > 1
    end = statements[-1 if has_several else 0].start
    return Answer(answer[:end].strip().rstrip("*#").strip(), labels[-1]), has_several

  def _plain(self, label: str, allowed: Sequence[str] | None) -> str:
    """Returns the label without ornaments, unless they are a part of an allowed one."""
    return label if allowed and label in allowed else plain_label(label)

  def _allowed(self, input_text: str) -> Sequence[str] | None:
    if self.choices is None:
      return self.labels
    found = [match[1].strip() for match in self.choices.finditer(input_text)]
    # An input without choices does not have the expected format, so it allows no label.
    return found or self.labels or ()

  def _as_allowed(self, label: str, allowed: Sequence[str] | None) -> str | None:
    """Returns the label in the spelling of the allowed labels, or None if it is not allowed.

    With a task the spelling must match exactly, as in its published figures.
    """
    if allowed is None or label in allowed:
      return label
    if self.task is not None:
      return None
    return next((one for one in allowed if _normalised(one) == _normalised(label)), None)

  def _problem(self, label: str, allowed: Sequence[str] | None) -> str:
    """Returns why `label` is invalid, or ""."""
    if is_blank(label) or not any(character.isalnum() for character in label):
      return f"the label {label[:40]!r} has no letter and no digit"
    if len(label.splitlines()) > 1:
      return "the label has more than one line"
    if len(label) > self.max_label_characters:
      return f"the label has {len(label)} characters, over {self.max_label_characters}"
    if allowed is not None:
      if self._as_allowed(label, allowed) is None:
        return f"the label is not allowed for the row: {label[:60]!r}"
    elif self.task is None and _PLACEHOLDER.fullmatch(label):
      return f"the label {label!r} is a placeholder"
    return ""


def _until_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
  """Returns the text before the first stop sequence, and whether there was one."""
  # A stop sequence at the start of the text repeats the prompt and does not end the answer.
  start = len(text) - len(text.lstrip())
  ends = [end for end in (text.find(sequence, start + 1) for sequence in stop) if end >= 0]
  return (text[: min(ends)], True) if ends else (text, False)


def _normalised(label: str) -> str:
  return " ".join(label.casefold().split())


def _failure(reason: str) -> Parsed:
  return Parsed(None, None, reason)


def _cut(text: str) -> str:
  line = " ".join(text.split())
  return line if len(line) <= 200 else line[:197] + "..."
