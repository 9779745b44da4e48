"""The parameters of a prediction, and the one place where they reach the decoder."""

import dataclasses
import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dss_jax.errors import UserError
from dss_jax.language_models.arguments import (
  ArgumentError,
  check_integer,
  check_number,
  check_texts,
)

if TYPE_CHECKING:
  from dss_jax.student.predictor import Answer, Predictor
  from dss_jax.student.questions import Question

DEFAULT_MAX_OUTPUT_TOKENS = 128
_LEAST_TOP_P = 1e-6


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


def decode(
  predictor: "Predictor", prompts: Sequence[str], parameters: Parameters
) -> list[list[dict[str, Any]]]:
  """Returns the candidates for each prompt, as the service's predictions.

  Raises UserError for parameters that the decoder does not have.
  """
  questions = [_question(prompt, parameters) for prompt in prompts]
  return [
    [_prediction(predictor, answer) for answer in answers]
    for answers in predictor.candidates(questions)
  ]


def stream(predictor: "Predictor", prompt: str, parameters: Parameters) -> Iterator[str]:
  """Yields the answer's text as it is decoded; raises as decode does."""
  for increment in predictor.stream([_question(prompt, parameters)]):
    if increment.text:
      yield increment.text


def check_decoder(parameters: Parameters) -> None:
  """Raises UserError for parameters that the decoder does not have."""
  for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
    value = getattr(parameters, name)
    if value:
      raise UserError(f"{name} = {value!r}: a student does not take it; leave out {name}")


def _question(prompt: str, parameters: Parameters) -> "Question":
  from dss_jax.config.schema import DecodingConfig
  from dss_jax.student.questions import Question

  check_decoder(parameters)
  decoding = DecodingConfig(
    temperature=parameters.temperature or 0.0,
    top_k=parameters.top_k,
    # The service's 0 keeps the most likely token alone, as the least share does.
    top_p=1.0 if parameters.top_p is None else max(parameters.top_p, _LEAST_TOP_P),
    stop=tuple(parameters.stop_sequences or ()),
    num_candidates=parameters.candidate_count or 1,
    seed=secrets.randbits(32) if parameters.seed is None else parameters.seed,
    log_probabilities=parameters.logprobs is not None,
    top_log_probabilities=parameters.logprobs or 0,
  )
  return Question(prompt, "label", parameters.max_output_tokens, decoding)


def _prediction(predictor: "Predictor", answer: "Answer") -> dict[str, Any]:
  prediction: dict[str, Any] = {"content": answer.text, "safetyAttributes": {}}
  if answer.log_probabilities:
    from dss_jax.student.chosen_tokens import ChosenTokens, service_form

    tokens = ChosenTokens(predictor.student.vocabulary.texts_after)
    prediction["logprobs"] = service_form(
      tokens.add(answer.ids, answer.log_probabilities, answer.alternatives)
    )
  return prediction
