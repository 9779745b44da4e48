"""The parameters of a prediction, and the one place where they reach the decoder."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dss_jax.errors import UserError
from dss_jax.language_models.arguments import (
  ArgumentError,
  check_integer,
  check_number,
  check_texts,
)

DEFAULT_MAX_OUTPUT_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Parameters:
  """The hosted service's parameters of a prediction; None is the default.

  Attributes:
    max_output_tokens: from 1 to 1024; None: the longest target of the student's training.
    temperature: from 0 to 1; 0, the default, always takes the most likely token.
    top_k, top_p: from how many, or what share, of the most likely tokens is sampled.
    stop_sequences: the answer ends before the first of them.
    candidate_count: number of answers, from 1 to 8.
    logprobs: number of likely tokens with their log probabilities at each step, from 0 to 5.
    presence_penalty, frequency_penalty: from -2 to 2.
    logit_bias: token id to a number from -100 to 100.
  """

  max_output_tokens: int | None = DEFAULT_MAX_OUTPUT_TOKENS
  temperature: float | None = None
  top_k: int | None = None
  top_p: float | None = None
  stop_sequences: Sequence[str] | None = None
  candidate_count: int | None = None
  logprobs: int | None = None
  presence_penalty: float | None = None
  frequency_penalty: float | None = None
  logit_bias: dict[Any, float] | None = None
  seed: int | None = None

  def __post_init__(self) -> None:
    """Raises ArgumentError for a wrong value."""
    check_integer("max_output_tokens", self.max_output_tokens, 1, 1024)
    check_number("temperature", self.temperature, 0, 1)
    check_integer("top_k", self.top_k, 1, 40)
    check_number("top_p", self.top_p, 0, 1)
    if self.stop_sequences is not None:
      check_texts("stop_sequences", self.stop_sequences)
    check_integer("candidate_count", self.candidate_count, 1, 8)
    check_integer("logprobs", self.logprobs, 0, 5)
    check_number("presence_penalty", self.presence_penalty, -2, 2)
    check_number("frequency_penalty", self.frequency_penalty, -2, 2)
    check_integer("seed", self.seed, 0, 2**32 - 1)
    if self.logit_bias is not None:
      if not isinstance(self.logit_bias, dict):
        raise ArgumentError(
          f"logit_bias: is {self.logit_bias!r:.60}, but must be a dictionary of token ids"
        )
      for token, bias in self.logit_bias.items():
        check_number(f"logit_bias[{token!r}]", bias, -100, 100)


NAMES = tuple(field.name for field in dataclasses.fields(Parameters))


def decode(predictor: Any, prompts: Sequence[str], parameters: Parameters) -> list[list[str]]:
  """Returns the candidates for each prompt.

  Raises UserError for parameters that the decoder does not have.
  """
  absent = [
    name
    for name, is_asked in (
      ("temperature", bool(parameters.temperature)),
      ("candidate_count", (parameters.candidate_count or 1) > 1),
      ("logprobs", parameters.logprobs is not None),
      ("presence_penalty", bool(parameters.presence_penalty)),
      ("frequency_penalty", bool(parameters.frequency_penalty)),
      ("logit_bias", bool(parameters.logit_bias)),
    )
    if is_asked
  ]
  if absent:
    raise UserError(
      f"{absent[0]} = {getattr(parameters, absent[0])!r}: students answer with the most likely"
      f" token at each step and nothing else yet; leave out {absent[0]}"
    )
  # At temperature 0 top_k, top_p and the seed change nothing.
  answers = predictor.answers(prompts, "label", max_output_tokens=parameters.max_output_tokens)
  return [[_until_stop(answer, parameters.stop_sequences or ())] for answer in answers]


def _until_stop(text: str, stop_sequences: Sequence[str]) -> str:
  ends = [text.index(stop) for stop in stop_sequences if stop in text]
  return text[: min(ends)] if ends else text
