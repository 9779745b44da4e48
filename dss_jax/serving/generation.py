"""What a client asks for, in either API, and the answers to it as they are written."""

import dataclasses
import secrets
from collections.abc import AsyncIterator, Sequence

from dss_jax.config.schema import DecodingConfig
from dss_jax.serving.batcher import Batcher
from dss_jax.serving.errors import BadRequest
from dss_jax.student.questions import Alternatives, Question

MAX_PROMPTS = 128
MAX_CANDIDATES = 8
# Between rationale and label in one text, as `dss annotate` reads it.
ANSWER_MARK = "\nAnswer: "


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
  """A request.

  Attributes:
    prompts: inputs of the student.
    explain: whether the student writes its rationale, too.
    max_tokens: of an answer; None for the longest that the student was trained to write.
    temperature: 0 takes the most likely token.
    top_k, top_p: see DecodingConfig.
    seed: None draws one.
    candidates: answers to each prompt.
    log_probabilities: whether the answers have those of their tokens.
    top_log_probabilities: how many likely tokens are listed at each position.
    is_chat: whether the prompts are the last messages of conversations, which says the form of the
      hosted service's answers.
  """

  prompts: tuple[str, ...]
  explain: bool = False
  max_tokens: int | None = None
  temperature: float = 0.0
  top_k: int | None = None
  top_p: float = 1.0
  stop: tuple[str, ...] = ()
  seed: int | None = None
  candidates: int = 1
  log_probabilities: bool = False
  top_log_probabilities: int = 0
  is_chat: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
  """The next text of an answer.

  Attributes:
    prompt, candidate: which answer it belongs to.
    kind: "label" or "rationale".
    finish: "stop" or "length" with the last part of an answer, else None.
  """

  prompt: int
  candidate: int
  kind: str
  text: str
  ids: list[int]
  log_probabilities: list[float]
  alternatives: list[Alternatives]
  finish: str | None


@dataclasses.dataclass
class Answer:
  """A complete answer: a label, and the rationale if it was asked for."""

  label: str = ""
  rationale: str | None = None
  finish: str = "stop"
  ids: list[int] = dataclasses.field(default_factory=list)
  log_probabilities: list[float] = dataclasses.field(default_factory=list)
  alternatives: list[Alternatives] = dataclasses.field(default_factory=list)
  output_tokens: int = 0

  @property
  def text(self) -> str:
    """Returns the answer as one text, in the form that `dss annotate` reads."""
    return self.label if self.rationale is None else f"{self.rationale}{ANSWER_MARK}{self.label}"


def questions_of(generation: Generation, max_output_tokens: int) -> list[Question]:
  """Returns the questions to the student: each prompt's rationale, if asked for, and label.

  Clients ask for more tokens than a student can write; it writes as many as it can.
  """
  seed = secrets.randbits(32) if generation.seed is None else generation.seed
  most = generation.max_tokens and min(generation.max_tokens, max_output_tokens)
  decoding = DecodingConfig(
    temperature=generation.temperature,
    top_k=generation.top_k,
    top_p=generation.top_p,
    stop=generation.stop,
    seed=seed,
    num_candidates=generation.candidates,
    log_probabilities=generation.log_probabilities,
    top_log_probabilities=generation.top_log_probabilities,
  )
  kinds = ("rationale", "label") if generation.explain else ("label",)
  return [Question(prompt, kind, most, decoding) for prompt in generation.prompts for kind in kinds]


class Writing:
  """The answers to a request that are being written."""

  def __init__(self, batcher: Batcher, generation: Generation, max_output_tokens: int):
    """Puts the request into the queue; raises Refused."""
    self._questions = questions_of(generation, max_output_tokens)
    self._kinds = 2 if generation.explain else 1
    self._generation = generation
    self._ticket = batcher.submit(self._questions)

  def cancel(self) -> None:
    self._ticket.cancel()

  async def parts(self) -> AsyncIterator[Part]:
    """Yields the texts of all answers as they are written, in any order."""
    async for position, part in self._ticket:
      yield Part(
        prompt=position // self._kinds,
        candidate=part.candidate,
        kind=self._questions[position].kind,
        text=part.text,
        ids=part.ids,
        log_probabilities=part.log_probabilities,
        alternatives=part.alternatives,
        finish=part.finish,
      )

  async def texts(self) -> AsyncIterator[Part]:
    """Yields the parts so that those of an answer add up to Answer.text.

    Label and rationale of an answer are written side by side: the label's parts wait for the end
    of the rationale. `finish` comes with the last part of the whole answer.
    """
    waiting: dict[tuple[int, int], list[Part] | None] = {}
    async for part in self.parts():
      key = (part.prompt, part.candidate)
      if not self._generation.explain:
        yield part
      elif part.kind == "label":
        held = waiting.setdefault(key, [])
        if held is None:
          yield part
        else:
          held.append(part)
      elif part.finish is None:
        yield part
      else:
        yield dataclasses.replace(part, text=part.text + ANSWER_MARK, finish=None)
        for held_part in waiting.get(key) or []:
          yield held_part
        waiting[key] = None

  async def answers(self) -> list[list[Answer]]:
    """Returns all candidates of each prompt."""
    found = [
      [
        Answer(rationale="" if self._generation.explain else None)
        for _ in range(self._generation.candidates)
      ]
      for _ in self._generation.prompts
    ]
    async for part in self.parts():
      add_part(found[part.prompt][part.candidate], part)
    return found


def add_part(answer: Answer, part: Part) -> None:
  """Adds the next text to an answer."""
  answer.output_tokens += len(part.ids)
  if part.kind == "rationale":
    answer.rationale = (answer.rationale or "") + part.text
  else:
    answer.label += part.text
    answer.ids += part.ids
    answer.log_probabilities += part.log_probabilities
    answer.alternatives += part.alternatives
  if part.finish == "length":
    answer.finish = "length"


def check(generation: Generation, kinds: Sequence[str]) -> None:
  """Raises BadRequest for what a student cannot do, or a request too large."""
  if not 1 <= len(generation.prompts) <= MAX_PROMPTS:
    raise BadRequest(f"a request has 1 to {MAX_PROMPTS} prompts, not {len(generation.prompts):,}")
  for prompt in generation.prompts:
    if not prompt.strip():
      raise BadRequest("a prompt is empty; give the text that the student is to answer")
  needed = ("rationale", "label") if generation.explain else ("label",)
  for kind in needed:
    if kind not in kinds:
      raise BadRequest(f"this student was not trained to write a {kind}", "explain")
