"""What a run would ask and cost, without asking: filled prompts, expected tokens and money."""

from collections.abc import Iterable
from typing import Any

from dss_jax.annotation.budget import TokenBudget
from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.prompts import Prompt
from dss_jax.annotation.run import RequestConfig, request_for
from dss_jax.data.records import Row
from dss_jax.teachers.base import TeacherRequest

SHOWN_PROMPTS = 3


def dry_run(
  rows: Iterable[Row], prompt: Prompt, config: AnnotationConfig, request_config: RequestConfig
) -> dict[str, Any]:
  """The first prompts as they would be sent, and what all of them would cost.

  Tokens are estimated from bytes, some 25 % either way for English; answers already in a
  journal are not taken off.
  """
  budget = TokenBudget(None)
  total = requests = 0
  prompt_tokens = most_completion_tokens = 0.0
  shown: list[str] = []
  for index, row in enumerate(rows):
    total += 1
    mode = config.mode(row)
    if mode is None:
      continue
    request = request_for(row, index, mode, 0, prompt, config, request_config.api)
    if len(shown) < SHOWN_PROMPTS:
      shown.append(as_text(request))
    requests += config.samples
    prompt_tokens += budget.expected_prompt_tokens(request) * config.samples
    most_completion_tokens += request.max_tokens * config.samples
  completion_tokens = budget.expected_completion_tokens * requests
  prices = request_config.prices
  return {
    "rows": total,
    "requests": requests,
    "expected_prompt_tokens": round(prompt_tokens),
    "expected_completion_tokens": round(completion_tokens),
    "most_completion_tokens": round(most_completion_tokens),
    "expected_cost": prices.cost(prompt_tokens, completion_tokens),
    "most_cost": prices.cost(prompt_tokens, most_completion_tokens),
    "prompt": prompt.digest,
    "prompts": shown,
  }


def as_text(request: TeacherRequest) -> str:
  """A request as a person reads it."""
  if request.messages is None:
    return request.text or ""
  return "\n\n".join(f"[{one['role']}]\n{one['content']}" for one in request.messages)
