"""A student's predictions for rows, in order, decoded by an engine."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from dss_jax.config.schema import TARGET_KINDS, DecodingConfig
from dss_jax.data.records import Row, check_rows, read_rows, write_rows
from dss_jax.data.shared_encoder import start_tokens
from dss_jax.decoding.engine import Engine, Request
from dss_jax.errors import UserError
from dss_jax.model.layer_stacks import unrolled_config
from dss_jax.progress import ProgressLine, progress_line, say
from dss_jax.storage.files import PathLike
from dss_jax.student.drift import DriftCounter, DriftDetector
from dss_jax.student.questions import Alternatives, Increment, Question
from dss_jax.student.student import Student

# This many rows are in memory at a time.
WINDOW_ROWS = 2048


@dataclasses.dataclass
class Answer:
  """What a student has written.

  Attributes:
    text: without the stop text, if it ended there.
    ids: its tokens, up to the end token or the one that completes the stop text.
    log_probabilities: of the tokens, if they were asked for.
    alternatives: at each of the tokens, the most likely ones, if they were asked for.
    score: of a beam.
  """

  text: str = ""
  ids: list[int] = dataclasses.field(default_factory=list)
  log_probabilities: list[float] = dataclasses.field(default_factory=list)
  alternatives: list[Alternatives] = dataclasses.field(default_factory=list)
  score: float | None = None

  def details(self) -> dict[str, Any]:
    """Returns the answer as JSON values."""
    values: dict[str, Any] = {"text": self.text}
    if self.log_probabilities:
      values.update(ids=self.ids, log_probabilities=self.log_probabilities)
    return values if self.score is None else {**values, "score": self.score}


class Predictor:
  """Decodes with a student's best weights.

  Attributes:
    student: the student.
    cut_inputs: the number of truncated inputs so far, by target kind.
  """

  def __init__(
    self,
    student: Student,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int = 32,
    decoding: DecodingConfig | None = None,
    params: Any = None,
  ):
    """Loads the weights.

    Args:
      batch_size: rows decoded at a time, a multiple of the mesh's data axis.
      params: the weights, unrolled, if they are loaded already.
    """
    self.student = student
    self._decoding = decoding or DecodingConfig()
    self.cut_inputs = {"label": 0, "rationale": 0}
    starts = start_tokens(student.config.data, student.vocabulary)
    self._starts = dict(zip(TARGET_KINDS, starts, strict=True))
    self._engine = Engine(
      student.params(mesh, scan_layers=False) if params is None else params,
      unrolled_config(student.config.model),
      self._decoding,
      mesh,
      slots=batch_size,
      eos_id=student.vocabulary.eos_id,
      pad_id=student.vocabulary.pad_id,
    )

  @property
  def has_details(self) -> bool:
    """Whether an answer is more than one text."""
    decoding = self._decoding
    return decoding.num_candidates > 1 or decoding.log_probabilities or decoding.beams > 1

  def answers(
    self,
    texts: Sequence[str],
    kind: str,
    *,
    max_output_tokens: int | None = None,
    on_answers: Callable[[int], None] = lambda count: None,
  ) -> list[str]:
    """Returns the prediction for each input text, in order: the first candidate of each.

    Args:
      kind: "label" or "rationale"; it determines the prefix and the start token.
      max_output_tokens: by default the longest target that the student was trained on.
      on_answers: called with the number of texts answered since the last call.

    Raises:
      UserError: the student was not trained on this kind.
    """
    questions = [Question(text, kind) for text in texts]
    candidates = self.candidates(
      questions, max_output_tokens=max_output_tokens, on_answers=on_answers
    )
    return [answers[0].text for answers in candidates]

  def candidates(
    self,
    questions: Sequence[Question],
    *,
    max_output_tokens: int | None = None,
    on_answers: Callable[[int], None] = lambda count: None,
  ) -> list[list[Answer]]:
    """Returns the answers to each question, as many as its DecodingConfig.num_candidates."""
    requests = [self._request(question, max_output_tokens) for question in questions]
    # Rows of a length share a program. Long answers come first, short ones fill the slots after.
    order = sorted(
      range(len(requests)),
      key=lambda n: (-requests[n].max_tokens, (len(requests[n].ids) - 1).bit_length()),
    )
    counts = [self._decoding_of(request).num_candidates for request in requests]
    answers = [[Answer() for _ in range(count)] for count in counts]
    in_order = [requests[n] for n in order]
    for piece in self._engine.decode(in_order, is_complete=self._ends(in_order)):
      number = order[piece.request]
      answer = answers[number][piece.candidate]
      answer.ids += piece.ids
      answer.log_probabilities += piece.log_probabilities
      answer.alternatives += piece.alternatives
      answer.score = piece.score
      if piece.is_last:
        self._complete(answer, self._decoding_of(requests[number]).stop)
        counts[number] -= 1
        if not counts[number]:
          on_answers(1)
    return answers

  def stream(
    self,
    questions: Iterable[Question],
    *,
    is_cancelled: Callable[[int], bool] = lambda number: False,
  ) -> Iterator[Increment]:
    """Yields the answers' texts as they are decoded; an answer's increments add up to its text.

    Args:
      questions: taken as slots get free; an iterator may say that there is none now, and have
        some when it is asked again.
      is_cancelled: called with the number of a question; True ends its answers.
    """
    # Of questions with open answers alone, since there may be no end of questions.
    requests: dict[int, Request] = {}
    open_answers: dict[int, int] = {}
    numbers = itertools.count()
    answers: dict[tuple[int, int], Answer] = {}
    ends = self._ends(requests)

    def take(question: Question) -> Request:
      request, number = self._request(question), next(numbers)
      requests[number] = request
      open_answers[number] = self._decoding_of(request).num_candidates
      return request

    def is_complete(number: int, ids: list[int]) -> bool:
      return is_cancelled(number) or ends(number, ids)

    for piece in self._engine.decode(map(take, questions), is_complete=is_complete):
      key = (piece.request, piece.candidate)
      request = requests[piece.request]
      answer = answers.setdefault(key, Answer())
      shown, known = len(answer.text), len(answer.ids)
      answer.ids += piece.ids
      answer.log_probabilities += piece.log_probabilities
      answer.alternatives += piece.alternatives
      finish = None
      if piece.is_last:
        finish = self._finish(answer, request)
        self._complete(answer, self._decoding_of(request).stop)
        del answers[key]
        open_answers[piece.request] -= 1
        if not open_answers[piece.request]:
          del open_answers[piece.request], requests[piece.request]
      else:
        answer.text = self._certain_text(answer, self._decoding_of(request).stop)
      yield Increment(
        *key,
        answer.text[shown:],
        answer.ids[known:],
        answer.log_probabilities[known:],
        finish,
        answer.alternatives[known:],
      )

  def _request(self, question: Question, max_output_tokens: int | None = None) -> Request:
    self.check_trained(question.kind)
    most = question.max_tokens or max_output_tokens or self._longest_answer(question.kind)
    ids = self._encode(question.text, question.kind)
    return Request(ids, most, question.decoding, self._starts[question.kind])

  def _decoding_of(self, request: Request) -> DecodingConfig:
    return request.decoding or self._decoding

  def _finish(self, answer: Answer, request: Request) -> str:
    """Returns why an answer ended: "length" if it may go on."""
    is_ended = answer.ids[-1:] == [self.student.vocabulary.eos_id]
    is_full = len(answer.ids) >= request.max_tokens
    is_stopped = self._stop_in(answer.ids, self._decoding_of(request).stop) is not None
    return "length" if is_full and not is_ended and not is_stopped else "stop"

  def _longest_answer(self, kind: str) -> int:
    longest = self.student.card["longest_target_tokens"][kind]
    return min(-(-longest // 8) * 8, self.student.config.data.max_output_tokens)

  def check_trained(self, kind: str) -> None:
    """Raises UserError if the student was not trained to write this kind."""
    alpha = self.student.config.loss.alpha
    if kind == "rationale" and alpha == 1.0:
      raise UserError(
        f"{self.student.directory}: was trained on labels alone and has no rationales to give; "
        "leave out --explain, or train a student with `dss distill`"
      )
    if kind == "label" and alpha == 0.0:
      raise UserError(
        f"{self.student.directory}: was trained on rationales alone and has no labels to give; "
        "train a student with an --alpha above 0"
      )

  def _encode(self, text: str, kind: str) -> list[int]:
    vocabulary = self.student.vocabulary
    ids = vocabulary.encode(self.student.card["prefixes"][kind] + text)
    most = self.student.config.data.max_input_tokens - 1
    self.cut_inputs[kind] += len(ids) > most
    return [*ids[:most], vocabulary.eos_id]

  def _text(self, ids: Sequence[int]) -> str:
    return self.student.vocabulary.decode(ids)

  def _stop_in(self, ids: Sequence[int], stop: Sequence[str]) -> int | None:
    """Returns where the first stop text begins in the text of the tokens."""
    text = self._text(ids) if stop else ""
    places = [text.find(one) for one in stop]
    return min((place for place in places if place >= 0), default=None)

  def _ends(
    self, requests: Sequence[Request] | Mapping[int, Request]
  ) -> Callable[[int, list[int]], bool]:
    """Returns a function that says whether an answer to a request has come to a stop text."""
    return lambda number, ids: (
      self._stop_in(ids, self._decoding_of(requests[number]).stop) is not None
    )

  def _complete(self, answer: Answer, stop: Sequence[str]) -> None:
    """Sets the text, and cuts it and the tokens at the first stop text."""
    place = self._stop_in(answer.ids, stop)
    if place is not None:
      while self._stop_in(answer.ids[:-1], stop) is not None:
        answer.ids.pop()
      answer.log_probabilities = answer.log_probabilities[: len(answer.ids)]
      answer.alternatives = answer.alternatives[: len(answer.ids)]
    answer.text = self._text(answer.ids)[:place]

  def _certain_text(self, answer: Answer, stop: Sequence[str]) -> str:
    """Returns the text so far that no later token changes, nor a stop text cuts."""
    text = self._text(answer.ids)
    # A character whose other bytes are still to come is shown as replaced.
    while text.endswith("\N{REPLACEMENT CHARACTER}"):
      text = text[:-1]
    longest = max(map(len, stop), default=1)
    text = text[: max(len(text) - longest + 1, 0)]
    return text if len(text) > len(answer.text) else answer.text


def predict_file(
  predictor: Predictor,
  dataset: PathLike,
  output: PathLike,
  *,
  explain: bool = False,
  max_output_tokens: int | None = None,
  labels_as_text: bool = False,
) -> int:
  """Writes rows with `prediction` and, with `explain`, `rationale`; returns their number.

  A rationale that a row already has is replaced by the student's. Several candidates, or their
  log-probabilities, are listed as `prediction_candidates` and `rationale_candidates`. The output
  appears only when complete, in the order of the input. Says at the end how many inputs look
  different from those of training.
  """
  total = check_rows(dataset, labels_as_text)
  drift = DriftCounter(DriftDetector.of(predictor.student))
  texts_a_row = 2 if explain else 1
  with progress_line("predicting", total * texts_a_row) as line:
    rows = _predicted(
      predictor, read_rows(dataset, labels_as_text), explain, max_output_tokens, line, drift
    )
    written = write_rows(os.fspath(output), rows)
  if cut := predictor.cut_inputs["label"]:
    say(f"warning: {cut} of {total} inputs were cut to the longest that the student was trained on")
  drift.say()
  return written


def _predicted(
  predictor: Predictor,
  rows: Iterable[Row],
  explain: bool,
  max_output_tokens: int | None,
  line: ProgressLine,
  drift: DriftCounter,
) -> Iterator[Row]:
  kinds = {"prediction": "label"}
  if explain:
    kinds["rationale"] = "rationale"
  done = 0

  def advance(count: int) -> None:
    nonlocal done
    done += count
    line.update(done)

  for window in _windows(rows, WINDOW_ROWS):
    texts = [row["input_text"] for row in window]
    drift.add(texts)
    # Both kinds in one run, so that labels fill the slots that rationales leave.
    questions = [Question(text, kind) for kind in kinds.values() for text in texts]
    candidates = predictor.candidates(
      questions, max_output_tokens=max_output_tokens, on_answers=advance
    )
    for number, row in enumerate(window):
      answers: Row = {}
      for key, of_row in zip(kinds, candidates[number :: len(window)], strict=True):
        answers[key] = of_row[0].text
        if predictor.has_details:
          answers[f"{key}_candidates"] = [answer.details() for answer in of_row]
      yield {**row, **answers}


def _windows(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
  window = []
  for row in rows:
    window.append(row)
    if len(window) == size:
      yield window
      window = []
  if window:
    yield window
