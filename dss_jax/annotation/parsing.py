"""Parses a teacher's answer into rationale and label, or a reason why it has none.

No text raises an exception, and no text yields a label that the rules do not allow. The text is
searched and compared, never evaluated.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from dss_jax.data.task_definition import Answer, TaskDefinition, UnparsableAnswer

# Rationales are a few sentences; a longer text is degenerate.
MAX_ANSWER_CHARACTERS = 32_768
MAX_LABEL_CHARACTERS = 200

_PLACEHOLDER = re.compile(r"[{<\[](label|answer|your answer|the answer)[}>\]]|label", re.I)
_THOUGHTS_END = "</think>"


class Parsed(NamedTuple):
  """The parsed answer.

  Attributes:
    rationale: never blank; None if the answer does not parse.
    label: None if there is no label that the rules allow.
    reason: why the rationale or the label is missing; "" if both are there.
  """

  rationale: str | None
  label: str | None
  reason: str


@dataclasses.dataclass(frozen=True)
class ParseRules:
  """The rules for parsing answers.

  Attributes:
    marker: must occur once in an answer; the label is the rest of its line.
    task: its parse_answer replaces the marker, and its same_label compares labels.
    labels: the allowed labels; None allows any text.
    choices: matches the allowed labels in a row's input; the label is the pattern's only group.
    max_label_characters: a longer label is rejected.
  """

  marker: str = "Answer:"
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
      text: the teacher's text.
      input_text: the row's input, which `choices` searches.
      stop: sequences that end the answer, for teachers that do not stop there.
      cut_off: whether the answer reached max_tokens.
    """
    if len(text) > MAX_ANSWER_CHARACTERS:
      return _failure(f"the answer has {len(text):,} characters, over {MAX_ANSWER_CHARACTERS:,}")
    answer, was_stopped = _until_stop(text.rpartition(_THOUGHTS_END)[2], stop)
    if not answer.strip():
      return _failure("the answer is empty")
    try:
      rationale, label = self._split(answer)
    except UnparsableAnswer as error:
      return _failure(_cut(str(error)))
    except Exception as error:
      return _failure(_cut(f"the task's parse_answer raised {type(error).__name__}: {error}"))
    if not rationale.strip():
      return _failure("there is no reasoning before the answer")
    if label is None:
      return Parsed(rationale, None, "the answer is not a single label")
    if cut_off and not was_stopped and answer.rstrip().endswith(label):
      return Parsed(rationale, None, "the answer may be cut off within the label")
    allowed = self._allowed(input_text)
    problem = self._problem(label, allowed)
    if problem:
      return Parsed(rationale, None, problem)
    return Parsed(rationale, self._as_allowed(label, allowed), "")

  def _split(self, answer: str) -> Answer:
    if self.task is not None:
      rationale, label = self.task.parse_answer(answer)
      if not isinstance(rationale, str) or not isinstance(label, str | None):
        raise UnparsableAnswer("the task's parse_answer did not return an Answer of texts")
      return Answer(rationale, label)
    rationale, marker, rest = answer.partition(self.marker)
    if not marker:
      raise UnparsableAnswer(f'no "{self.marker}" in the answer')
    if self.marker in rest:
      raise UnparsableAnswer(f'"{self.marker}" occurs more than once in the answer')
    line = rest.strip().splitlines()[:1] if rest.strip() else []
    if not line:
      raise UnparsableAnswer(f'nothing follows "{self.marker}"')
    return Answer(rationale.strip().rstrip("*#").strip(), _strip_label(line[0]))

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
    if not label.strip() or not any(character.isalnum() for character in label):
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


def _strip_label(line: str) -> str:
  """Strips Markdown emphasis, quotation marks and a full stop from a label."""
  label = line.strip().strip("*`_ ")
  if label.endswith(".") and not label.endswith(".."):
    label = label[:-1]
  if len(label) > 1 and label[0] == label[-1] and label[0] in "\"'":
    label = label[1:-1]
  return label.strip("*`_ ")


def _normalised(label: str) -> str:
  return " ".join(label.casefold().split())


def _failure(reason: str) -> Parsed:
  return Parsed(None, None, reason)


def _cut(text: str) -> str:
  line = " ".join(text.split())
  return line if len(line) <= 200 else line[:197] + "..."
