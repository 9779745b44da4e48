"""Sends a request again while it may still succeed, within the token budget."""

import asyncio
import dataclasses
import random
import time

from dss_jax.teachers.base import (
  Billed,
  RequestFailed,
  Teacher,
  TeacherRequest,
  TeacherResponse,
)
from dss_jax.teachers.budget import TokenBudget


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetryPolicy:
  """The number of attempts of one request, and the backoff between them.

  After attempt n the backoff is base * 2^(n-1) seconds, at most `longest_wait_seconds`, times a
  random number from 0.5 to 1. A longer wait that the server asks for replaces it.
  """

  attempts: int = 6
  base_wait_seconds: float = 0.5
  longest_wait_seconds: float = 30.0
  # If the server asks for a longer wait, the request fails.
  longest_stated_wait_seconds: float = 300.0


class BudgetSpent(Exception):
  """The budget does not suffice for another request."""


class RetryingTeacher:
  """Asks a teacher until it answers, fails for good, or the attempts or the budget are used up.

  A wait that the server states applies to all requests. A request that was refused with one does
  not use up an attempt as long as others are answered, because a limit that lets some requests
  through will let this one through.
  """

  def __init__(self, teacher: Teacher, policy: RetryPolicy, budget: TokenBudget):
    self.retries = 0
    self._teacher = teacher
    self._policy = policy
    self._budget = budget
    self._blocked_until = 0.0
    self._answers = 0

  async def ask(self, request: TeacherRequest) -> TeacherResponse:
    """Returns the answer.

    Raises:
      RequestFailed: the request was not answered; the reason is that of the last attempt.
      BudgetSpent: the budget does not suffice for an attempt.
      UserError: no request can be answered.
    """
    attempt = sent = 0
    answers = self._answers
    while True:
      await self._wait_until_allowed()
      sent += 1
      try:
        return await self._attempt(request)
      except RequestFailed as error:
        is_limited = error.wait_seconds is not None
        if not is_limited or sent == 1 or answers == self._answers:
          attempt += 1
        answers = self._answers
        delay = self._delay(attempt, error)
        if not error.may_pass or attempt >= self._policy.attempts or delay is None:
          times = f" ({sent} attempts)" if sent > 1 else ""
          raise RequestFailed(f"{error}{times}", may_pass=error.may_pass) from None
      self.retries += 1
      await asyncio.sleep(delay)

  async def _attempt(self, request: TeacherRequest) -> TeacherResponse:
    reserved = await self._budget.reserve(request)
    if reserved is None:
      raise BudgetSpent
    cost: TeacherResponse | Billed | None = None
    try:
      cost = await self._teacher.ask(request)
      self._answers += 1
      return cost
    except RequestFailed as error:
      cost = error.billed
      raise
    finally:
      await self._budget.settle(request, reserved, cost)

  async def _wait_until_allowed(self) -> None:
    while (wait := self._blocked_until - time.monotonic()) > 0:
      # Jitter, so that the requests do not all arrive at the same moment.
      await asyncio.sleep(wait * random.uniform(1.0, 1.1))

  def _delay(self, attempt: int, error: RequestFailed) -> float | None:
    """Returns the seconds until the next attempt; None if the server asks for too many."""
    policy = self._policy
    wait = min(policy.base_wait_seconds * 2 ** (attempt - 1), policy.longest_wait_seconds)
    wait *= random.uniform(0.5, 1.0)
    if error.wait_seconds is None:
      return wait
    if error.wait_seconds > policy.longest_stated_wait_seconds:
      return None
    # A rate limit applies to the client, so all of its requests wait.
    self._blocked_until = max(self._blocked_until, time.monotonic() + error.wait_seconds)
    return max(wait, error.wait_seconds * random.uniform(1.0, 1.1))
