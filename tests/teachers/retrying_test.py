"""Retries: attempts, backoff, waits that the server states, and the budget of each attempt."""

import asyncio
import dataclasses
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dss_jax.teachers import retrying
from dss_jax.teachers.base import Billed, RequestFailed, TeacherRequest, TeacherResponse
from dss_jax.teachers.budget import TokenBudget
from dss_jax.teachers.retrying import BudgetSpent, RetryingTeacher, RetryPolicy

REQUEST = TeacherRequest(0, "x", None, "x" * 40, (), 5, 0.0)
ANSWER = TeacherResponse("yes", "stop", 10, 5)
DOWN = RequestFailed("HTTP 500 down", may_pass=True)


class _Teacher:
  """Gives the outcomes of a list, then answers."""

  name, is_recorded = "listed", False

  def __init__(self, *outcomes):
    self.outcomes = list(outcomes)
    self.requests = []

  async def ask(self, request):
    self.requests.append(request)
    outcome = self.outcomes.pop(0) if self.outcomes else ANSWER
    if isinstance(outcome, Exception):
      raise outcome
    return outcome

  async def close(self):
    pass


@pytest.fixture
def clock(monkeypatch):
  """Time that advances by sleeping alone; the list of sleeps."""
  sleeps = []
  sleep = asyncio.sleep

  async def record(seconds):
    sleeps.append(seconds)
    await sleep(0)

  monkeypatch.setattr(retrying.asyncio, "sleep", record)
  monkeypatch.setattr(time, "monotonic", lambda: sum(sleeps))
  return sleeps


def _limited(seconds):
  return RequestFailed("HTTP 429 slow down", may_pass=True, wait_seconds=seconds)


def _ask(teacher, policy=None, budget=None):
  retrying_teacher = RetryingTeacher(teacher, policy or RetryPolicy(), budget or TokenBudget(None))
  return asyncio.run(retrying_teacher.ask(REQUEST))


def test_backoff_and_stated_waits(clock):
  teacher = _Teacher(DOWN, DOWN, _limited(7), _limited(100), DOWN)
  policy = RetryPolicy(attempts=6, base_wait_seconds=1.0, longest_wait_seconds=3.0)
  assert _ask(teacher, policy) == ANSWER
  first, second, third, fourth, last = clock
  assert 0.5 <= first <= 1.0 <= second <= 2.0
  assert 7.0 <= third <= 7.7
  assert 100.0 <= fourth <= 110.0
  # At most 3 seconds.
  assert 1.5 <= last <= 3.0


def test_attempts(clock):
  with pytest.raises(RequestFailed, match=r"^HTTP 500 down \(3 attempts\)$") as error:
    _ask(_Teacher(*[DOWN] * 9), RetryPolicy(attempts=3))
  assert error.value.may_pass
  with pytest.raises(RequestFailed, match=r"^HTTP 400 no$"):
    _ask(_Teacher(RequestFailed("HTTP 400 no")))
  assert len(clock) == 2


def test_a_too_long_wait_fails_the_request(clock):
  with pytest.raises(RequestFailed, match=r"^HTTP 429 slow down$"):
    _ask(_Teacher(_limited(3600)))
  assert not clock


def test_a_stated_wait_applies_to_all_requests(clock, monkeypatch):
  """A request that starts after the refusal of another one waits before it is sent."""
  monkeypatch.setattr(time, "monotonic", lambda: 0.0 if len(clock) < 2 else 100.0)
  teacher = RetryingTeacher(_Teacher(_limited(9)), RetryPolicy(), TokenBudget(None))

  async def ask_two():
    await asyncio.gather(teacher.ask(REQUEST), teacher.ask(REQUEST))

  asyncio.run(ask_two())
  assert teacher.retries == 1
  assert len(clock) == 2
  assert all(9.0 <= seconds <= 9.9 for seconds in clock)


def test_a_rate_limit_uses_up_no_attempts_while_others_are_answered(clock):
  """Of 30 requests the server answers one in each window; each has 3 attempts."""

  class _OnePerWindow(_Teacher):
    def __init__(self):
      super().__init__()
      self.window = -1

    async def ask(self, request):
      window = time.monotonic() // 60
      if window == self.window:
        raise _limited(60 - time.monotonic() % 60)
      self.window = window
      return ANSWER

  teacher = RetryingTeacher(_OnePerWindow(), RetryPolicy(attempts=3), TokenBudget(None))

  async def ask_all():
    return await asyncio.gather(*(teacher.ask(REQUEST) for _ in range(30)))

  assert asyncio.run(ask_all()) == [ANSWER] * 30
  # A server that answers nobody uses them up.
  with pytest.raises(RequestFailed, match=r"slow down \(3 attempts\)$"):
    _ask(_Teacher(*[_limited(60)] * 9), RetryPolicy(attempts=3))


def test_each_attempt_is_within_the_budget(clock):
  """An answer that is lost may have cost 10 tokens of prompt and 5 of answer."""
  lost = RequestFailed("no complete response", may_pass=True, billed=Billed())
  budget = TokenBudget(80)
  teacher = _Teacher(*[lost] * 9)
  with pytest.raises(BudgetSpent):
    _ask(teacher, budget=budget)
  # A fourth could cost 45 tokens.
  assert len(teacher.requests) == 3
  assert budget.spent == 45


class _Server(_Teacher):
  """Bills prompt and answer by fixed ratios, and counts what it bills."""

  def __init__(self, per_byte, fails, counts):
    super().__init__()
    self.per_byte, self.fails, self.counts = per_byte, fails, counts
    self.billed = 0

  async def ask(self, request):
    self.requests.append(request)
    await asyncio.sleep(0)
    prompt = round(len(request.text) * self.per_byte)
    completion = request.max_tokens if self.counts else min(request.max_tokens, 3)
    kind = self.fails[len(self.requests) % len(self.fails)]
    if kind == "refuses":
      raise RequestFailed("HTTP 500", may_pass=True)
    self.billed += prompt + completion
    if kind == "loses":
      raise RequestFailed("no complete response", may_pass=True, billed=Billed())
    if kind == "spoils":
      raise RequestFailed("not JSON", may_pass=True, billed=Billed(prompt, completion))
    return TeacherResponse("x", "stop", prompt, completion)


@settings(deadline=None, max_examples=60)
@given(
  per_byte=st.floats(0.1, 1.0),
  fails=st.lists(st.sampled_from(["answers", "refuses", "spoils"]), min_size=1, max_size=6),
  limit=st.integers(1, 3000),
  lengths=st.lists(st.integers(1, 400), min_size=1, max_size=30),
  counts=st.booleans(),
)
def test_the_budget_is_never_exceeded(per_byte, fails, limit, lengths, counts):
  """However the server counts, and whatever becomes of its answers."""
  server = _Server(per_byte, ["answers", *fails], counts)
  budget = TokenBudget(limit)
  policy = RetryPolicy(attempts=3, base_wait_seconds=0.0)
  teacher = RetryingTeacher(server, policy, budget)

  async def ask_all():
    requests = [dataclasses.replace(REQUEST, text="x" * length) for length in lengths]
    return await asyncio.gather(*map(teacher.ask, requests), return_exceptions=True)

  results = asyncio.run(ask_all())
  assert all(isinstance(one, TeacherResponse | RequestFailed | BudgetSpent) for one in results)
  assert budget.spent == server.billed
  # The number of tokens of each prompt is rounded.
  assert server.billed <= limit + len(server.requests)
