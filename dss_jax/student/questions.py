"""What a student is asked, and the texts that it writes."""

import dataclasses

from dss_jax.config.schema import DecodingConfig

# The most likely tokens of one position and their log-probabilities, the most likely one first.
Alternatives = list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Question:
  """An input text, and what the student is to write: its "label" or its "rationale".

  Attributes:
    max_tokens: of an answer; None for the longest that the student was trained to write.
    decoding: how answers are chosen, and how many; None as the predictor does.
  """

  text: str
  kind: str
  max_tokens: int | None = None
  decoding: DecodingConfig | None = None


@dataclasses.dataclass(frozen=True)
class Increment:
  """The next text of an answer: `number` of the question, `candidate` of its answers.

  Attributes:
    ids: the tokens that were decoded since the last increment.
    log_probabilities: of these tokens, by the model itself, if they were asked for.
    alternatives: at each of these tokens, the ids and log-probabilities of the most likely ones,
      if they were asked for.
    finish: with the last text: "stop" if the answer has come to its end, "length" if it was cut.
  """

  number: int
  candidate: int
  text: str
  ids: list[int] = dataclasses.field(default_factory=list)
  log_probabilities: list[float] = dataclasses.field(default_factory=list)
  finish: str | None = None
  alternatives: list[Alternatives] = dataclasses.field(default_factory=list)

  @property
  def is_last(self) -> bool:
    return self.finish is not None
