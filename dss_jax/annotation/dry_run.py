"""Dry run: the filled prompts and the expected tokens and cost, without sending requests."""

from collections.abc import Iterable
from typing import Any

from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.prompts import Prompt
from dss_jax.annotation.run import RequestConfig, request_for
from dss_jax.data.records import Row
from dss_jax.teachers.base import TeacherRequest
from dss_jax.teachers.budget import TokenBudget

_SHOWN_PROMPTS = 3
_TYPICAL_ANSWER_TOKENS = 80


def dry_run(
  rows: Iterable[Row], prompt: Prompt, config: AnnotationConfig, request_config: RequestConfig
) -> dict[str, Any]:
  """Returns the first prompts as they would be sent, and the cost of all requests.

  Tokens are estimated from bytes, within about 25 % for English. Answers already in a journal
  are not subtracted.
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
    if len(shown) < _SHOWN_PROMPTS:
      shown.append(_as_text(request))
    requests += config.samples
    prompt_tokens += budget.expected_prompt_tokens(request) * config.samples
    most_completion_tokens += request.max_tokens * config.samples
  completion_tokens = _TYPICAL_ANSWER_TOKENS * requests
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


def _as_text(request: TeacherRequest) -> str:
  """Formats a request as readable text."""
  if request.messages is None:
    return request.text or ""
  return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in request.messages)
