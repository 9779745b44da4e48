"""The interface of teachers, and the syntax of `--teacher`."""

import dataclasses
from typing import Literal, Protocol

from dss_jax.errors import UserError

# The API of a request: chat messages, or plain text to continue.
Api = Literal["chat", "completion"]

_FORMATS = "openai:MODEL, recorded:FILE, t5:MODEL"


@dataclasses.dataclass(frozen=True)
class TeacherRequest:
  """One request: the filled prompt and the sampling settings.

  Attributes:
    index: the row's number in its file, from 0; the key of recorded answers.
    input_text: the row's own text, for teachers that were trained without a prompt.
    messages: the prompt as chat messages; None with the completion API.
    text: the prompt as plain text; None with the chat API.
    sample: the number of the sample, from 0, if several answers to a row are requested.
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
  """A teacher's answer, not parsed yet.

  Attributes:
    text: valid Unicode, of bounded length, without the key.
    finish: the finish reason: "stop", "length" (max_tokens reached), another word of the server,
      or None.
    prompt_tokens, completion_tokens: counted by the teacher; None if it does not count.
    model: the model name in the server's response; None if there is none.
  """

  text: str
  finish: str | None = None
  prompt_tokens: int | None = None
  completion_tokens: int | None = None
  model: str | None = None


class RequestFailed(Exception):
  """A request failed for good: its row is marked as failed with this reason, the run continues."""


class Teacher(Protocol):
  """Answers requests.

  Attributes:
    name: the name in the provenance.
    is_recorded: whether the answers are on disk already, so that no journal is needed.
    retries: number of requests sent again so far.
  """

  name: str
  is_recorded: bool
  retries: int

  async def ask(self, request: TeacherRequest) -> TeacherResponse:
    """Returns the answer.

    Raises:
      RequestFailed: this request cannot be answered.
      UserError: no request can be answered (a wrong key, an unknown model).
    """
    ...

  async def close(self) -> None:
    """Frees connections and devices."""
    ...


def split_teacher(teacher: str) -> tuple[str, str]:
  """Returns the kind ("openai", "recorded", "t5") and the text after the colon of `--teacher`.

  Raises:
    UserError: the kind is unknown, or nothing follows it.
  """
  kind, _, rest = teacher.partition(":")
  if not rest or kind not in ("openai", "recorded", "t5"):
    raise UserError(f"--teacher {teacher}: must be one of {_FORMATS}")
  return kind, rest
