"""Ends a run that would spend time or tokens for nothing: refusals, unparsable answers."""

import asyncio
import collections
import re

from dss_jax.annotation.parsing import Parsed
from dss_jax.errors import UserError
from dss_jax.progress import say
from dss_jax.teachers.base import RequestFailed, TeacherResponse
from dss_jax.teachers.server_words import one_line

# So many rows in a row that are refused, or fail, for the same reason end the run.
MAX_EQUAL_FAILURES = 8
# A short outage can fail all requests in flight, after answers have shown that the server works.
_MAX_PASSING_FAILURES = 64
# So many answers, the first of a run, of which none parses, end the run.
FIRST_ANSWERS = 20
_SHOWN_ANSWERS = 3
_SHOWN_CHARACTERS = 500

# Numbers, ids and quoted texts differ between rows that are refused for the same reason.
_DETAILS = re.compile(r"\b[0-9a-f-]{8,}\b|\d+|\"[^\"]*\"")


class FailureStreak:
  """Counts consecutive requests that failed for the same reason."""

  def __init__(self, max_requests_in_flight: int, keep_going: bool):
    self._max_in_flight = max_requests_in_flight
    self._keep_going = keep_going
    self._reason = ""
    self._count = 0
    self._has_answer = False

  def end(self) -> None:
    """Notes an answer."""
    self._has_answer = True
    self._count = 0

  def add(self, error: RequestFailed) -> int | None:
    """Notes a failure; returns the length of the streak if it ends the run."""
    reason = _DETAILS.sub("#", str(error))
    self._count = self._count + 1 if reason == self._reason else 1
    self._reason = reason
    most = MAX_EQUAL_FAILURES
    if error.may_pass and self._has_answer:
      most = max(_MAX_PASSING_FAILURES, 2 * self._max_in_flight)
    # A refusal is of a row and its neighbours may be like it; a dead server is of no row.
    if self._keep_going and not error.may_pass:
      return None
    return self._count if self._count >= most else None


class FirstAnswers:
  """Lets FIRST_ANSWERS requests through, and the others when an answer has parsed."""

  def __init__(self, teacher: str, is_open: bool):
    self.is_open = is_open
    self._teacher = teacher
    self._sent = 0
    self._reasons: collections.Counter[str] = collections.Counter()
    self._answers: list[str] = []
    self._changed = asyncio.Condition()

  async def enter(self) -> None:
    """Waits until a request may be sent."""
    if self.is_open:
      return
    async with self._changed:
      while not self.is_open and self._sent >= FIRST_ANSWERS:
        await self._changed.wait()
      self._sent += 1

  async def failed(self) -> None:
    """Notes a request without an answer, in whose place another may be sent."""
    if not self.is_open:
      async with self._changed:
        self._sent -= 1
        self._changed.notify_all()

  async def answered(self, response: TeacherResponse, parsed: Parsed, is_useful: bool) -> None:
    """Notes an answer.

    Raises:
      UserError: it is the last of the first answers, and none is useful.
    """
    if self.is_open:
      return
    if is_useful:
      async with self._changed:
        self.is_open = True
        self._changed.notify_all()
      return
    self._reasons[parsed.reason.partition(": ")[0]] += 1
    self._answers.append(response.text)
    if len(self._answers) < FIRST_ANSWERS:
      return
    for number, text in enumerate(self._answers[:_SHOWN_ANSWERS], start=1):
      shown = one_line(text, _SHOWN_CHARACTERS) or "(empty)"
      say(f"answer {number} of {len(self._answers)}: {shown}")
    reason, count = self._reasons.most_common(1)[0]
    raise UserError(
      f"--teacher {self._teacher}: none of the first {len(self._answers)} answers parses"
      f" ({count} times: {reason}); change the prompt's instruction or its parse rules (--prompt"
      " FILE.yaml), take another teacher, or give --keep-going to go on; the answers are kept"
    )
