"""How many tokens answers cost: expected before a request, counted after, held to a budget."""

from dss_jax.teachers.base import TeacherRequest, TeacherResponse

# Bytes of English a token; corrected by what the teacher's own counts say.
_BYTES_A_TOKEN = 4.0
# Words that chat servers put around each message.
_TOKENS_A_MESSAGE = 4
_TYPICAL_ANSWER_TOKENS = 80


def prompt_bytes(request: TeacherRequest) -> int:
  """The size of the filled prompt in UTF-8."""
  if request.messages is None:
    return len((request.text or "").encode())
  return sum(len(one["content"].encode()) for one in request.messages)


class TokenBudget:
  """Counts tokens, and grants requests while the budget lasts.

  A request is granted with what it may cost at the most reserved, so that the requests in
  flight together stay within the budget as far as the prompt's length in tokens is known.
  """

  def __init__(self, limit: int | None):
    self._limit = limit
    self._reserved = 0.0
    # What the teacher's own counts tell: bytes of prompts and their tokens, answers and theirs.
    self._counted_bytes = self._counted_prompt = self._answers = self._counted_completion = 0
    self.prompt_tokens = 0.0
    self.completion_tokens = 0.0

  @property
  def spent(self) -> int:
    """Tokens of all answers so far, prompts included."""
    return round(self.prompt_tokens + self.completion_tokens)

  def expected_prompt_tokens(self, request: TeacherRequest) -> float:
    if self._counted_prompt:
      return prompt_bytes(request) * self._counted_prompt / self._counted_bytes
    messages = _TOKENS_A_MESSAGE * len(request.messages or ())
    return prompt_bytes(request) / _BYTES_A_TOKEN + messages

  @property
  def expected_completion_tokens(self) -> float:
    """Of one answer: the mean of those so far."""
    if not self._answers:
      return _TYPICAL_ANSWER_TOKENS
    return self._counted_completion / self._answers

  def reserve(self, request: TeacherRequest) -> float | None:
    """Tokens reserved for a request, to be given back with `settle`; None where none is left."""
    tokens = self.expected_prompt_tokens(request) + request.max_tokens
    if self._limit is not None and self.spent + self._reserved + tokens > self._limit:
      return None
    self._reserved += tokens
    return tokens

  def settle(
    self, request: TeacherRequest, reserved: float, response: TeacherResponse | None
  ) -> None:
    """The request came back: `reserved` is free again, and the response's tokens are spent."""
    self._reserved -= reserved
    if response is not None:
      self.count(request, response)

  def count(self, request: TeacherRequest, response: TeacherResponse) -> None:
    """Adds the tokens of an answer, estimated where the teacher did not count them."""
    if response.prompt_tokens is None or response.completion_tokens is None:
      self.prompt_tokens += self.expected_prompt_tokens(request)
      self.completion_tokens += len(response.text.encode()) / _BYTES_A_TOKEN
      return
    self.prompt_tokens += response.prompt_tokens
    self.completion_tokens += response.completion_tokens
    self._counted_bytes += prompt_bytes(request)
    self._counted_prompt += response.prompt_tokens
    self._answers += 1
    self._counted_completion += response.completion_tokens
