"""Teachers: one protocol, and which client `--teacher` names."""

import dataclasses
from typing import Protocol

from dss_jax.errors import UserError

KINDS = ("openai:MODEL", "recorded:FILE", "t5:MODEL")


@dataclasses.dataclass(frozen=True)
class TeacherRequest:
  """One request: the filled prompt, and how to answer it.

  Attributes:
    index: the row's number in its file, from 0; what recorded answers go by.
    input_text: the row's own text, for teachers that were trained to take it bare.
    messages: the prompt as chat messages; None asks for a continuation of `text`.
    text: the prompt as plain text; None asks for a chat answer.
    sample: which of several answers to the same row, from 0.
  """

  index: int
  input_text: str
  messages: list[dict[str, str]] | None
  text: str | None
  stop: tuple[str, ...]
  max_tokens: int
  temperature: float
  sample: int = 0


@dataclasses.dataclass(frozen=True)
class TeacherResponse:
  """A teacher's answer as it came.

  Attributes:
    text: valid Unicode, of bounded length, free of the key.
    finish: "stop", "length" (cut off at max_tokens), another word of the server, or None.
    prompt_tokens, completion_tokens: as the teacher counts them; None where it does not.
    model: the name under which the server answered; None where there is none.
  """

  text: str
  finish: str | None = None
  prompt_tokens: int | None = None
  completion_tokens: int | None = None
  model: str | None = None

  @property
  def tokens(self) -> int:
    return (self.prompt_tokens or 0) + (self.completion_tokens or 0)


class RequestFailed(Exception):
  """One request failed for good: its row is set aside with this reason, the run goes on."""


class Teacher(Protocol):
  """Whoever answers questions.

  Attributes:
    name: as it stands in the provenance.
    is_recorded: whether its answers lie on disk already, so that none is journalled.
    retries: requests sent again so far.
  """

  name: str
  is_recorded: bool
  retries: int

  async def ask(self, request: TeacherRequest) -> TeacherResponse:
    """The answer.

    Raises:
      RequestFailed: this request cannot be answered.
      UserError: no request can (a wrong key, no such model).
    """
    ...

  async def close(self) -> None:
    """Frees connections and devices."""
    ...


def split_teacher(teacher: str) -> tuple[str, str]:
  """The kind ("openai", "recorded", "t5") and what follows its colon; UserError for others."""
  kind, colon, rest = teacher.partition(":")
  if not colon or not rest or kind not in ("openai", "recorded", "t5"):
    raise UserError(f"--teacher {teacher}: is none of {', '.join(KINDS)}; write one of these")
  return kind, rest
