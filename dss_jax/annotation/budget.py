"""Token budget: estimates tokens before a request, counts them after it, enforces a limit."""

from dss_jax.teachers.base import TeacherRequest, TeacherResponse

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
  stay within the budget. Only the number of prompt tokens is an estimate.
  """

  def __init__(self, limit: int | None):
    self._limit = limit
    self._reserved = 0.0
    # Sums over the prompts whose tokens the teacher counted.
    self._counted_bytes = self._counted_prompt = 0
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

  def reserve(self, request: TeacherRequest) -> float | None:
    """Reserves tokens for a request until `settle`; returns None if the budget does not suffice."""
    tokens = self.expected_prompt_tokens(request) + request.max_tokens
    if self._limit is not None and self.spent + self._reserved + tokens > self._limit:
      return None
    self._reserved += tokens
    return tokens

  def settle(
    self, request: TeacherRequest, reserved: float, response: TeacherResponse | None
  ) -> None:
    """Releases the reserved tokens and counts those of the response, if there is one."""
    self._reserved -= reserved
    if response is not None:
      self.count(request, response)

  def count(self, request: TeacherRequest, response: TeacherResponse) -> None:
    """Adds the tokens of an answer; estimates them if the teacher did not count them."""
    if response.prompt_tokens is None or response.completion_tokens is None:
      self.prompt_tokens += self.expected_prompt_tokens(request)
      self.completion_tokens += len(response.text.encode()) / _BYTES_PER_TOKEN
      return
    self.prompt_tokens += response.prompt_tokens
    self.completion_tokens += response.completion_tokens
    self._counted_bytes += prompt_bytes(request)
    self._counted_prompt += response.prompt_tokens
