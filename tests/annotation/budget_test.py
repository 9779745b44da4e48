"""The token budget: estimates, the teacher's own counts, and the limit."""

import dataclasses

import pytest

from dss_jax.annotation.budget import TokenBudget
from dss_jax.teachers.base import TeacherRequest, TeacherResponse

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
  """Each request reserves 10 tokens of prompt and 5 of answer."""
  budget = TokenBudget(30)
  first, second = budget.reserve(PLAIN), budget.reserve(PLAIN)
  assert (first, second) == (15, 15)
  assert budget.reserve(PLAIN) is None
  # A failed request costs nothing.
  budget.settle(PLAIN, first, None)
  third = budget.reserve(PLAIN)
  assert third == 15
  budget.settle(PLAIN, second, TeacherResponse("x", "stop", 10, 1))
  assert budget.spent == 11
  assert budget.reserve(PLAIN) is None
  budget.settle(PLAIN, third, None)
  assert budget.reserve(PLAIN) == 15


def test_without_a_limit_every_request_is_allowed():
  budget = TokenBudget(None)
  assert [budget.reserve(PLAIN) for _ in range(3)] == [15, 15, 15]
