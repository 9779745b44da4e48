"""The token budget: estimates, the teacher's own counts, and the limit."""

import asyncio
import dataclasses

import pytest

from dss_jax.teachers.base import Billed, TeacherRequest, TeacherResponse
from dss_jax.teachers.budget import TokenBudget

# 40 bytes of UTF-8 in 38 characters.
TEXT = "é" * 2 + "x" * 36
PLAIN = TeacherRequest(0, "x", None, TEXT, (), 5, 0.0)
CHAT = dataclasses.replace(PLAIN, messages=[{"role": "user", "content": TEXT}] * 2, text=None)


def test_prompt_tokens_are_estimated_from_bytes():
  budget = TokenBudget(None)
  assert budget.expected_prompt_tokens(PLAIN) == 40 / 4
  assert budget.expected_prompt_tokens(CHAT) == 2 * (40 / 4 + 4)


def test_the_teachers_counts_replace_the_estimate():
  budget = TokenBudget(None)
  budget.count(PLAIN, TeacherResponse("yes", "stop", 20, 7))
  budget.count(CHAT, TeacherResponse("yes", "stop", 40, 3))
  assert (budget.prompt_tokens, budget.completion_tokens, budget.spent) == (60, 10, 70)
  # 60 tokens in 120 bytes.
  assert budget.expected_prompt_tokens(PLAIN) == 20
  assert budget.expected_prompt_tokens(CHAT) == 40


@pytest.mark.parametrize("counts", [(None, None), (3, None), (None, 3)])
def test_tokens_that_the_teacher_does_not_count_are_estimated(counts):
  budget = TokenBudget(None)
  budget.count(PLAIN, TeacherResponse("é" * 6, "stop", *counts))
  assert (budget.prompt_tokens, budget.completion_tokens) == (10, 3)


def test_requests_in_flight_stay_within_the_limit():
  """Each reserves the most that it can cost: 40 tokens of prompt until the teacher has counted."""

  async def check():
    budget = TokenBudget(51)
    first = await budget.reserve(PLAIN)
    assert first == 45
    others = [asyncio.create_task(budget.reserve(PLAIN)) for _ in range(3)]
    await _let_run()
    assert not any(task.done() for task in others)
    await budget.settle(PLAIN, first, TeacherResponse("x", "stop", 10, 1))
    await _let_run()
    # 11 are spent, 30 reserved.
    assert [task.done() for task in others] == [True, True, False]
    # A failed request costs nothing.
    await budget.settle(PLAIN, others[0].result(), None)
    assert await others[2] == 15
    for task in others[1:]:
      await budget.settle(PLAIN, task.result(), TeacherResponse("x", "stop", 10, 5))
    assert budget.spent == 41
    assert await budget.reserve(PLAIN) is None

  asyncio.run(check())


def test_the_largest_counts_are_reserved():
  """A teacher that thinks beyond max_tokens, and counts more tokens than estimated."""

  async def check():
    budget = TokenBudget(1000)
    budget.count(PLAIN, TeacherResponse("x", "stop", 20, 50))
    budget.count(PLAIN, TeacherResponse("x", "stop", 4, 1))
    assert await budget.reserve(PLAIN) == 20 + 50

  asyncio.run(check())


@pytest.mark.parametrize(
  ("cost", "tokens"),
  [(Billed(7, 2), (7, 2)), (Billed(7, None), (10, 5)), (Billed(), (10, 5)), (None, (0, 0))],
)
def test_lost_answers_cost_what_they_say_or_the_most(cost, tokens):
  async def check():
    budget = TokenBudget(100)
    await budget.settle(PLAIN, await budget.reserve(PLAIN), cost)
    assert (budget.prompt_tokens, budget.completion_tokens) == tokens
    assert await budget.reserve(PLAIN) is not None

  asyncio.run(check())


def test_without_a_limit_every_request_is_allowed():
  budget = TokenBudget(None)
  assert [asyncio.run(budget.reserve(PLAIN)) for _ in range(3)] == [0, 0, 0]


async def _let_run():
  for _ in range(10):
    await asyncio.sleep(0)
