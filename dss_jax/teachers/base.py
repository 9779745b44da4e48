"""The interface of teachers, and the syntax of `--teacher`."""

import dataclasses
from typing import Literal, Protocol

from dss_jax.errors import UserError

# The API of a request: chat messages, or plain text to continue.
Api = Literal["chat", "completion"]

_FORMATS = "openai:MODEL, recorded:FILE, t5:MODEL"
# Finish reasons of an answer that the model ended itself: OpenAI's, then other servers'.
_NATURAL_STOPS = frozenset(
  ("stop", "end_turn", "stop_sequence", "eos", "eos_token", "end_of_text", "complete", "completed")
)


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
    prompt_tokens, completion_tokens: counted by the teacher, thoughts included; None if it does
      not count.
    model: the model name in the server's response; None if there is none.
    remark: why the text is empty, if the server says so (a refusal, an unreadable content).
  """

  text: str
  finish: str | None = None
  prompt_tokens: int | None = None
  completion_tokens: int | None = None
  model: str | None = None
  remark: str | None = None

  @property
  def was_cut_off(self) -> bool:
    """Returns whether something else than the model ended the answer: a limit, a filter."""
    return bool(self.finish) and str(self.finish).lower() not in _NATURAL_STOPS


@dataclasses.dataclass(frozen=True)
class Billed:
  """The tokens that a request without an answer cost; None if that is not known."""

  prompt_tokens: int | None = None
  completion_tokens: int | None = None


class RequestFailed(Exception):
  """A request failed: its row is marked as failed with this reason, the run continues.

  Attributes:
    may_pass: whether the same request may succeed later.
    wait_seconds: how long the server asks to wait before that.
    billed: what it cost; None if it cost nothing.
  """

  def __init__(
    self,
    reason: str,
    *,
    may_pass: bool = False,
    wait_seconds: float | None = None,
    billed: Billed | None = None,
  ):
    super().__init__(reason)
    self.may_pass = may_pass
    self.wait_seconds = wait_seconds
    self.billed = billed


class Teacher(Protocol):
  """Answers requests.

  Attributes:
    name: the name in the provenance.
    is_recorded: whether the answers are on disk already, so that no journal is needed.
  """

  name: str
  is_recorded: bool

  async def ask(self, request: TeacherRequest) -> TeacherResponse:
    """Returns the answer, in one attempt.

    Raises:
      RequestFailed: this request was not answered.
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
