"""Continuous batching: the questions of all clients enter one engine as its slots get free."""

import asyncio
import collections
import dataclasses
import itertools
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Protocol

from dss_jax.serving.errors import QueueFull, Refused
from dss_jax.student.questions import Increment, Question

# Weight of the newest answer in the mean time between answers.
_SMOOTHING = 0.1
_LONGEST_RETRY_SECONDS = 60
_LOG = logging.getLogger("dss_jax.serving")


class Writer(Protocol):
  """What writes the answers; a Predictor."""

  def stream(
    self, questions: Iterable[Question], *, is_cancelled: Callable[[int], bool]
  ) -> Iterator[Increment]:
    """Yields the answers as they are written; takes questions as slots get free.

    `questions` may say that there is none now and have some later.
    """
    ...


def answers_to(question: Question) -> int:
  """Returns the number of answers that a question asks for."""
  return 1 if question.decoding is None else question.decoding.num_candidates


class Ticket:
  """The answers to the questions of one request, as they are written; iterate once."""

  def __init__(self, batcher: "Batcher", questions: Sequence[Question]):
    self._batcher = batcher
    self._loop = asyncio.get_running_loop()
    self._parts: asyncio.Queue[tuple[int, Increment] | Exception] = asyncio.Queue()
    self._open = sum(answers_to(question) for question in questions)
    self.is_cancelled = False

  async def __aiter__(self) -> AsyncIterator[tuple[int, Increment]]:
    """Yields the position of the question and the next part of one of its answers."""
    try:
      while self._open:
        part = await self._parts.get()
        if isinstance(part, Exception):
          raise part
        self._open -= part[1].is_last
        yield part
    finally:
      self.cancel()

  def cancel(self) -> None:
    """Ends answers that are not complete; their slots go to others."""
    if self._open and not self.is_cancelled:
      self.is_cancelled = True
      self._batcher.forget(self)

  def put(self, part: tuple[int, Increment] | Exception) -> None:
    """Called by the thread of the batcher."""
    # The loop of a client that has gone may be closed.
    if not self._loop.is_closed():
      self._loop.call_soon_threadsafe(self._parts.put_nowait, part)


@dataclasses.dataclass(slots=True)
class _Entry:
  ticket: Ticket
  position: int
  question: Question


class Batcher:
  """One thread that writes the answers of one student to all requests."""

  def __init__(self, writer: Writer, *, max_waiting: int, name: str = "batcher"):
    """Starts the thread.

    Args:
      max_waiting: answers that may wait for a slot, besides those that are written.
    """
    self._writer = writer
    self._max_waiting = max_waiting
    self._changed = threading.Condition()
    self._waiting: collections.deque[_Entry] = collections.deque()
    self._is_closed = False
    self._seconds_an_answer = 0.0
    self._last_answer = 0.0
    self.running = 0
    threading.Thread(target=self._run, name=name, daemon=True).start()

  @property
  def waiting(self) -> int:
    """Returns the number of answers that wait for a slot."""
    return sum(answers_to(entry.question) for entry in self._waiting.copy())

  def submit(self, questions: Sequence[Question]) -> Ticket:
    """Puts questions into the queue.

    Raises:
      QueueFull: the queue has no room for all of them.
      Refused: close was called.
    """
    ticket = Ticket(self, questions)
    with self._changed:
      if self._is_closed:
        raise Refused(503, "the server is stopping; try again", headers={"retry-after": "1"})
      new = sum(answers_to(question) for question in questions)
      if self.waiting + new > self._max_waiting:
        seconds = math.ceil(self.waiting * self._seconds_an_answer)
        raise QueueFull(min(max(seconds, 1), _LONGEST_RETRY_SECONDS))
      self._waiting.extend(
        _Entry(ticket, position, question) for position, question in enumerate(questions)
      )
      self._changed.notify()
    return ticket

  def forget(self, ticket: Ticket) -> None:
    """Takes a cancelled ticket's questions out of the queue."""
    with self._changed:
      self._waiting = collections.deque(one for one in self._waiting if one.ticket is not ticket)

  def close(self) -> None:
    """Takes no more questions; the thread ends when those taken are answered."""
    with self._changed:
      self._is_closed = True
      self._changed.notify()

  def _run(self) -> None:
    while True:
      with self._changed:
        while not self._waiting and not self._is_closed:
          self._changed.wait()
        if not self._waiting:
          return
      self._write()

  def _write(self) -> None:
    """Writes answers until no question is left."""
    # Of questions with open answers alone: on a busy server this goes on for days.
    taken: dict[int, _Entry] = {}
    open_answers: dict[int, int] = {}
    try:
      parts = self._writer.stream(
        _Arrivals(self._next, taken, open_answers),
        is_cancelled=lambda number: taken[number].ticket.is_cancelled,
      )
      for part in parts:
        entry = taken[part.number]
        if part.is_last:
          open_answers[part.number] -= 1
          if not open_answers[part.number]:
            del open_answers[part.number], taken[part.number]
          self._note_answer()
        self.running = sum(open_answers.values())
        entry.ticket.put((entry.position, part))
    # Whatever the device or the writer raises must reach the clients that wait.
    except Exception:
      _LOG.exception("the student failed")
      failed = {id(taken[number].ticket): taken[number].ticket for number in open_answers}
      for ticket in failed.values():
        ticket.put(
          Refused(500, "the student failed to write the answer; the server's log says why")
        )
    self.running = 0

  def _next(self) -> _Entry | None:
    with self._changed:
      return self._waiting.popleft() if self._waiting else None

  def _note_answer(self) -> None:
    now = time.monotonic()
    # The time of a pause is no time between answers.
    if self.running > 1 and self._last_answer:
      seconds = now - self._last_answer
      self._seconds_an_answer += _SMOOTHING * (seconds - self._seconds_an_answer)
    self._last_answer = now


class _Arrivals:
  """The waiting questions: an iterator that ends while none waits, and goes on later."""

  def __init__(
    self,
    next_entry: Callable[[], _Entry | None],
    taken: dict[int, _Entry],
    open_answers: dict[int, int],
  ):
    self._next_entry = next_entry
    self._taken = taken
    self._open_answers = open_answers
    self._numbers = itertools.count()

  def __iter__(self) -> Iterator[Question]:
    return self

  def __next__(self) -> Question:
    entry = self._next_entry()
    if entry is None:
      raise StopIteration
    number = next(self._numbers)
    self._taken[number] = entry
    self._open_answers[number] = answers_to(entry.question)
    return entry.question
