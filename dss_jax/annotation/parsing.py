"""What a teacher's text says: rationale and label, or in words why it does not say them.

Nothing that a model can write raises here, and nothing passes as a label that the rules do not
allow. The text is data: it is searched and compared, never evaluated.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from dss_jax.data.task_definition import Answer, TaskDefinition, UnparsableAnswer

# Rationales are a few sentences; a longer text is a model that lost its thread.
MAX_ANSWER_CHARACTERS = 32_768
MAX_LABEL_CHARACTERS = 200

_PLACEHOLDER = re.compile(r"[{<\[](label|answer|your answer|the answer)[}>\]]|label", re.I)
_THOUGHTS_END = "</think>"


class Parsed(NamedTuple):
  """What one answer says.

  Attributes:
    rationale: the reasoning, never blank; None where the answer does not parse.
    label: the label, or None where there is none that the rules allow.
    reason: why there is no rationale, or no label; "" where there are both.
  """

  rationale: str | None
  label: str | None
  reason: str


@dataclasses.dataclass(frozen=True)
class ParseRules:
  """How answers are read.

  Attributes:
    marker: what the label follows, once in an answer; the label ends with its line.
    task: its parse_answer reads the answers instead, and its same_label compares labels.
    labels: the only labels there are, or None for any text.
    choices: finds the labels that a row allows in its input, as the one group of each match.
    max_label_characters: a longer label is none.
  """

  marker: str = "Answer:"
  task: TaskDefinition | None = None
  labels: tuple[str, ...] | None = None
  choices: re.Pattern[str] | None = None
  max_label_characters: int = MAX_LABEL_CHARACTERS

  def same_label(self, first: str, second: str) -> bool:
    """Whether two labels say the same: as the task has it, else but for case and spaces."""
    if self.task is None:
      return _plain(first) == _plain(second)
    try:
      return bool(self.task.same_label(first, second))
    # A task file is the user's own code, and one of the labels is a model's.
    except Exception:
      return False

  def parse(
    self, text: str, *, input_text: str, stop: Sequence[str] = (), cut_off: bool = False
  ) -> Parsed:
    """Reads one answer.

    Args:
      text: what the teacher wrote.
      input_text: the row's, where `choices` are looked for.
      stop: sequences that begin what is no longer the answer, for teachers that write on.
      cut_off: whether the teacher was stopped by its limit of tokens.
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
      return Parsed(rationale, None, "the answer is no single label")
    if cut_off and not was_stopped and answer.rstrip().endswith(label):
      return Parsed(rationale, None, "the answer breaks off within the label")
    allowed = self._allowed(input_text)
    problem = self._problem(label, allowed)
    if problem:
      return Parsed(rationale, None, problem)
    return Parsed(rationale, self._as_allowed(label, allowed), "")

  def _split(self, answer: str) -> Answer:
    if self.task is not None:
      rationale, label = self.task.parse_answer(answer)
      if not isinstance(rationale, str) or not isinstance(label, str | None):
        raise UnparsableAnswer("the task's parse_answer returned no Answer of texts")
      return Answer(rationale, label)
    rationale, marker, rest = answer.partition(self.marker)
    if not marker:
      raise UnparsableAnswer(f'no "{self.marker}" in the answer')
    if self.marker in rest:
      raise UnparsableAnswer(f'"{self.marker}" stands more than once in the answer')
    line = rest.strip().splitlines()[:1] if rest.strip() else []
    if not line:
      raise UnparsableAnswer(f'nothing follows "{self.marker}"')
    return Answer(rationale.strip().rstrip("*#").strip(), _bare(line[0]))

  def _allowed(self, input_text: str) -> Sequence[str] | None:
    if self.choices is None:
      return self.labels
    found = [match[1].strip() for match in self.choices.finditer(input_text)]
    # An input without choices is none of the form that the rules were made for.
    return found or self.labels or ()

  def _as_allowed(self, label: str, allowed: Sequence[str] | None) -> str | None:
    """The label in the spelling of those allowed, or None where it is none of them.

    Labels that a task compares must be spelt exactly, as its published figures have it.
    """
    if allowed is None or label in allowed:
      return label
    if self.task is not None:
      return None
    return next((one for one in allowed if _plain(one) == _plain(label)), None)

  def _problem(self, label: str, allowed: Sequence[str] | None) -> str:
    """Why `label` is none, or ""."""
    if not label.strip() or not any(character.isalnum() for character in label):
      return f"the label {label[:40]!r} holds no letter and no digit"
    if len(label.splitlines()) > 1:
      return "the label runs over more than one line"
    if len(label) > self.max_label_characters:
      return f"the label has {len(label)} characters, over {self.max_label_characters}"
    if allowed is not None:
      if self._as_allowed(label, allowed) is None:
        return f"the label is none of those allowed for the row: {label[:60]!r}"
    elif self.task is None and _PLACEHOLDER.fullmatch(label):
      return f"the label {label!r} is the place for one"
    return ""


def _until_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
  """The text before the first stop sequence, and whether there was one."""
  # A sequence that opens the text is an echo of how answers begin, not the end of one.
  start = len(text) - len(text.lstrip())
  ends = [end for end in (text.find(sequence, start + 1) for sequence in stop) if end >= 0]
  return (text[: min(ends)], True) if ends else (text, False)


def _bare(line: str) -> str:
  """A label without the ornaments of chat: emphasis, quotation marks, a full stop."""
  label = line.strip().strip("*`_ ")
  if label.endswith(".") and not label.endswith(".."):
    label = label[:-1]
  if len(label) > 1 and label[0] == label[-1] and label[0] in "\"'":
    label = label[1:-1]
  return label.strip("*`_ ")


def _plain(label: str) -> str:
  return " ".join(label.casefold().split())


def _failure(reason: str) -> Parsed:
  return Parsed(None, None, reason)


def _cut(text: str) -> str:
  line = " ".join(text.split())
  return line if len(line) <= 200 else line[:197] + "..."
