"""Token budget: estimates tokens before a request, counts them after it, enforces a limit."""

import asyncio

from dss_jax.teachers.base import Billed, TeacherRequest, TeacherResponse

# For English; replaced by the ratio of the teacher's own counts.
_BYTES_PER_TOKEN = 4.0
# Tokens that chat templates add to each message.
_TOKENS_PER_MESSAGE = 4


def prompt_bytes(request: TeacherRequest) -> int:
  """Returns the size of the filled prompt in UTF-8."""
  if request.messages is None:
    return len((request.text or "").encode())
  return sum(len(message["content"].encode()) for message in request.messages)


class TokenBudget:
  """Counts tokens and allows requests up to a limit.

  Each request reserves the most tokens that it can cost, so that all requests in flight together
  stay within the limit: its max_tokens, and the tokens of its prompt by the largest ratios that the
  teacher has counted so far. The first request is sent alone, because nothing is counted before.
  """

  def __init__(self, limit: int | None):
    self.limit = limit
    self._reserved = 0.0
    self._in_flight = 0
    # Sums over the prompts whose tokens the teacher counted.
    self._counted_bytes = self._counted_prompt = 0
    # The most that the teacher has counted: for a byte of a prompt, for a token of max_tokens.
    self._most_per_byte = 0.0
    self._most_per_limit = 1.0
    self._has_answer = False
    self._changed = asyncio.Condition()
    self.prompt_tokens = 0.0
    self.completion_tokens = 0.0

  @property
  def spent(self) -> int:
    """Returns the tokens of all prompts and answers so far."""
    return round(self.prompt_tokens + self.completion_tokens)

  def expected_prompt_tokens(self, request: TeacherRequest) -> float:
    if self._counted_prompt:
      return prompt_bytes(request) * self._counted_prompt / self._counted_bytes
    messages = _TOKENS_PER_MESSAGE * len(request.messages or ())
    return prompt_bytes(request) / _BYTES_PER_TOKEN + messages

  async def reserve(self, request: TeacherRequest) -> float | None:
    """Reserves tokens for a request until `settle`; None if the budget does not suffice.

    Waits while the tokens that other requests have reserved may be released.
    """
    if self.limit is None:
      return 0.0
    async with self._changed:
      while True:
        tokens = self._most_tokens(request)
        is_enough = self.spent + self._reserved + tokens <= self.limit
        if is_enough and (self._has_answer or not self._in_flight):
          self._reserved += tokens
          self._in_flight += 1
          return tokens
        if not self._in_flight:
          return None
        await self._changed.wait()

  async def settle(
    self, request: TeacherRequest, reserved: float, cost: TeacherResponse | Billed | None
  ) -> None:
    """Releases the reserved tokens and counts those of the answer, or of a lost one, if any."""
    if cost is not None:
      self.count(request, cost)
    if self.limit is None:
      return
    async with self._changed:
      self._reserved -= reserved
      self._in_flight -= 1
      self._changed.notify_all()

  def count(self, request: TeacherRequest, cost: TeacherResponse | Billed) -> None:
    """Adds the tokens of an answer; estimates those that the teacher did not count.

    Of an answer that was lost and not counted, the most that it can have cost.
    """
    self._has_answer = self._has_answer or isinstance(cost, TeacherResponse)
    prompt, completion = cost.prompt_tokens, cost.completion_tokens
    if prompt is None or completion is None:
      self.prompt_tokens += self.expected_prompt_tokens(request)
      if isinstance(cost, TeacherResponse):
        self.completion_tokens += len(cost.text.encode()) / _BYTES_PER_TOKEN
      else:
        self.completion_tokens += request.max_tokens
      return
    self.prompt_tokens += prompt
    self.completion_tokens += completion
    size = max(prompt_bytes(request), 1)
    self._counted_bytes += size
    self._counted_prompt += prompt
    self._most_per_byte = max(self._most_per_byte, prompt / size)
    self._most_per_limit = max(self._most_per_limit, completion / request.max_tokens)

  def _most_tokens(self, request: TeacherRequest) -> float:
    if self._counted_prompt:
      prompt = prompt_bytes(request) * self._most_per_byte
    else:
      # No tokenizer makes more tokens than there are bytes.
      prompt = prompt_bytes(request) + _TOKENS_PER_MESSAGE * len(request.messages or ())
    return prompt + request.max_tokens * self._most_per_limit
