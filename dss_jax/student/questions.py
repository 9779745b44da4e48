"""What a student is asked, and the texts that it writes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Question:
  """An input text, and what the student is to write: its "label" or its "rationale".

  Attributes:
    max_tokens: of an answer; None for the longest that the student was trained to write.
    temperature: 0 takes the most likely token.
    top_k, top_p, seed: see DecodingConfig.
    stop: texts before which an answer ends.
    candidates: the number of answers.
  """

  text: str
  kind: str
  max_tokens: int | None = None
  temperature: float = 0.0
  top_k: int | None = None
  top_p: float = 1.0
  seed: int = 0
  stop: tuple[str, ...] = ()
  candidates: int = 1


@dataclasses.dataclass(frozen=True)
class Increment:
  """The next text of an answer: `number` of the question, `candidate` of its answers.

  Attributes:
    ids: the tokens that were decoded since the last increment.
    log_probabilities: of these tokens, by the model itself.
    finish: with the last text: "stop" if the student ended its answer, "length" if it was cut.
  """

  number: int
  candidate: int
  text: str
  ids: list[int] = dataclasses.field(default_factory=list)
  log_probabilities: list[float] = dataclasses.field(default_factory=list)
  finish: str | None = None

  @property
  def is_last(self) -> bool:
    return self.finish is not None
