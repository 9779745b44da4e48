"""Rows in, annotated rows out: concurrent, bounded, resumable, in the order of the input."""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from typing import Any

from dss_jax.annotation.budget import TokenBudget
from dss_jax.annotation.journal import Entry, Journal, key_of
from dss_jax.annotation.outcome import AnnotationConfig, Failure, Outcomes
from dss_jax.annotation.prompts import Api, Mode, Prompt
from dss_jax.annotation.usage import Prices, Tally
from dss_jax.data.records import Row, write_rows
from dss_jax.errors import UserError
from dss_jax.progress import ProgressLine, progress_line
from dss_jax.storage.files import PathLike
from dss_jax.teachers.base import RequestFailed, Teacher, TeacherRequest

# Rows between the oldest one without an answer and the newest one read.
LOOK_AHEAD_ROWS = 1024
# So many requests set aside without an answer in between, and the teacher is taken for gone.
_HOPELESS_FAILURES = 64
# Where nothing has been answered yet, a wrong URL or model is likelier than so many bad rows.
_HOPELESS_FAILURES_AT_START = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestConfig:
  """How a run goes about it; none of it changes what an answer says.

  Attributes:
    api: chat messages, or plain text to be continued.
    max_requests_in_flight: requests at a time.
    budget_tokens: the most tokens, of this run and the answers that it takes over.
    prices: for the cost so far and to come.
  """

  api: Api = "chat"
  max_requests_in_flight: int = 32
  budget_tokens: int | None = None
  prices: Prices = dataclasses.field(default_factory=Prices)


def journal_path(output: PathLike) -> str:
  """Where the answers of an output file are kept."""
  return f"{os.fspath(output)}.answers.jsonl"


def annotate(
  rows: Callable[[], Iterable[Row]],
  output: PathLike,
  teacher: Teacher,
  prompt: Prompt,
  config: AnnotationConfig,
  request_config: RequestConfig | None = None,
  numbers: Sequence[int] | None = None,
) -> dict[str, Any]:
  """Asks the teacher for what rows lack and writes them; returns the figures.

  The rows are gone through twice: once to count and check them before anything is asked, once
  to ask. Answers are kept in journal_path(output) as they come; the output appears whole, in
  the order of the rows, once every row is accounted for.

  Args:
    numbers: what recorded answers know each row by; by default its place, from 0.

  Raises:
    UserError: rows or output are not as they must be, or the teacher answers nothing.
  """
  request_config = request_config or RequestConfig()
  total = sum(1 for _ in rows())
  check_samples(config)
  started = time.monotonic()
  tally = Tally()
  numbered = zip(itertools.count() if numbers is None else numbers, rows(), strict=False)
  run = _Run(numbered, output, teacher, prompt, config, request_config)
  with progress_line("annotating", total) as line:

    def written() -> Generator[Row, None, None]:
      with contextlib.closing(run.rows()) as finished:
        for row in finished:
          tally.add(row)
          line.update(tally.rows, run.note(tally.rows, total))
          yield row

    run.warn(line)
    try:
      with contextlib.closing(written()) as annotated:
        write_rows(output, annotated)
    finally:
      run.close()
  seconds = time.monotonic() - started
  return {
    **tally.to_json(),
    "requests": run.requests,
    "answers_from_journal": run.taken_over,
    "retries": teacher.retries,
    "tokens_spent": run.budget.spent,
    "cost": run.cost,
    "seconds": round(seconds, 3),
    "rows_per_second": round(tally.rows / max(seconds, 1e-9), 2),
    "teacher": teacher.name,
    "prompt": prompt.digest,
    "output": os.fspath(output),
  }


def check_samples(config: AnnotationConfig) -> None:
  """Raises UserError where several samples would all be the same."""
  if config.samples > 1 and config.temperature == 0:
    raise UserError(
      f"--samples {config.samples}: at temperature 0 all samples of a row are the same; give"
      " --temperature 0.7, or one sample"
    )


def request_for(
  row: Row,
  index: int,
  mode: Mode,
  sample: int,
  prompt: Prompt,
  config: AnnotationConfig,
  api: Api,
) -> TeacherRequest:
  """The request for one sample of a row."""
  is_chat = api == "chat"
  return TeacherRequest(
    index=index,
    input_text=row["input_text"],
    messages=prompt.messages(row, mode) if is_chat else None,
    text=None if is_chat else prompt.text(row, mode),
    stop=prompt.stop,
    max_tokens=prompt.max_answer_tokens,
    temperature=config.temperature,
    sample=sample,
  )


@dataclasses.dataclass(slots=True)
class _Pending:
  """A row on its way: the samples that it waits for."""

  row: Row
  index: int
  mode: Mode | None
  answers: list[Entry | Failure | None]
  missing: int
  done: asyncio.Future[None] | None = None


class _Run:
  """One pass over the rows: a window of pending rows, and workers that ask for their samples."""

  def __init__(
    self,
    rows: Iterator[tuple[int, Row]],
    output: PathLike,
    teacher: Teacher,
    prompt: Prompt,
    config: AnnotationConfig,
    request_config: RequestConfig,
  ):
    self._rows = rows
    self._teacher = teacher
    self._prompt = prompt
    self._config = config
    self._request_config = request_config
    self._outcomes = Outcomes(teacher.name, prompt, config)
    self._journal = None if teacher.is_recorded else Journal(journal_path(output))
    self._window: collections.deque[_Pending] = collections.deque()
    self._jobs: collections.deque[tuple[_Pending, int]] = collections.deque()
    self._idle: list[asyncio.Future[None]] = []
    self._in_flight: dict[str, asyncio.Future[Entry | Failure]] = {}
    self._error: Exception | None = None
    self._failures_in_a_row = 0
    self._hopeless_failures = _HOPELESS_FAILURES_AT_START
    self._started = time.monotonic()
    self.budget = TokenBudget(request_config.budget_tokens)
    self.requests = 0
    self.taken_over = 0

  def rows(self) -> Generator[Row, None, None]:
    """The annotated rows, in order; the event loop runs while the next one is waited for."""
    with asyncio.Runner() as runner:
      # Not runner.run, which changes signal handlers and back at each of as many calls as rows.
      run = runner.get_loop().run_until_complete
      workers = run(self._start())
      try:
        while rows := run(self._next_rows()):
          yield from rows
      finally:
        run(self._stop(workers))

  def warn(self, line: ProgressLine) -> None:
    """Says what an earlier run left behind."""
    if self._journal is None:
      return
    if len(self._journal):
      line.say(f"{len(self._journal):,} answers of an earlier run are in {self._journal.path}")
    if self._journal.unreadable_lines:
      line.say(
        f"warning: {self._journal.path}: {self._journal.unreadable_lines:,} lines are damaged;"
        " their rows are asked again"
      )

  def note(self, done: int, total: int) -> str:
    """Rate, tokens and cost so far and to come."""
    seconds = max(time.monotonic() - self._started, 1e-9)
    note = f"{done / seconds:.1f} rows/s  {self.budget.spent:,} tokens"
    cost = self.cost
    if cost is not None:
      note += f"  cost {cost:.4f}, about {cost * (total - done) / done:.4f} to come"
    return note

  @property
  def cost(self) -> float | None:
    """The money spent so far, on this run's answers and those taken over."""
    return self._request_config.prices.cost(
      self.budget.prompt_tokens, self.budget.completion_tokens
    )

  def close(self) -> None:
    if self._journal is not None:
      self._journal.close()

  async def _start(self) -> list[asyncio.Task[None]]:
    count = self._request_config.max_requests_in_flight
    return [asyncio.create_task(self._work()) for _ in range(count)]

  async def _stop(self, workers: list[asyncio.Task[None]]) -> None:
    for worker in workers:
      worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    await self._teacher.close()

  async def _next_rows(self) -> list[Row]:
    """The finished rows at the head of the window, one at least; none at the end."""
    if self._error is not None:
      raise self._error
    self._fill()
    if not self._window:
      return []
    head = self._window[0]
    if head.missing:
      head.done = asyncio.get_running_loop().create_future()
      await head.done
    rows = []
    while self._window and not self._window[0].missing:
      rows.append(self._finished(self._window.popleft()))
    return rows

  def _fill(self) -> None:
    """Reads rows until the window is full, and hands their samples to the workers."""
    while len(self._window) < LOOK_AHEAD_ROWS:
      item = next(self._rows, None)
      if item is None:
        break
      index, row = item
      mode = self._config.mode(row)
      samples = 0 if mode is None else self._config.samples
      pending = _Pending(row, index, mode, [None] * samples, samples)
      self._window.append(pending)
      self._jobs.extend((pending, sample) for sample in range(samples))
    for _ in range(min(len(self._idle), len(self._jobs))):
      idle = self._idle.pop()
      if not idle.done():
        idle.set_result(None)

  def _finished(self, pending: _Pending) -> Row:
    if pending.mode is None:
      return self._outcomes.untouched(pending.row)
    answers = [answer for answer in pending.answers if answer is not None]
    return self._outcomes.row(pending.row, pending.mode, answers)

  async def _work(self) -> None:
    """One worker: asks for one sample after the other."""
    while True:
      while not self._jobs:
        idle = asyncio.get_running_loop().create_future()
        self._idle.append(idle)
        await idle
      pending, sample = self._jobs.popleft()
      try:
        answer = await self._answer(pending, sample)
      # Whatever it is ends the run, where the row is waited for.
      except Exception as error:
        # The first one is the cause; others may follow from workers still under way.
        self._error = self._error or error
        head = self._window[0].done
        if head is not None and not head.done():
          head.set_exception(self._error)
        return
      pending.answers[sample] = answer
      pending.missing -= 1
      if not pending.missing and pending.done is not None:
        pending.done.set_result(None)

  async def _answer(self, pending: _Pending, sample: int) -> Entry | Failure:
    """The answer to one sample: from the journal, from a like request in flight, or anew."""
    assert pending.mode is not None
    request = request_for(
      pending.row,
      pending.index,
      pending.mode,
      sample,
      self._prompt,
      self._config,
      self._request_config.api,
    )
    if self._journal is None:
      return await self._recorded(request)
    key = key_of(self._teacher.name, self._prompt.digest, request)
    entry = self._journal.get(key)
    if entry is not None:
      self.taken_over += 1
      self.budget.count(request, entry.response)
      return entry
    # Equal rows ask the same: one request answers them all.
    return await self._shared(key, self._ask(self._journal, key, request))

  async def _shared(
    self, key: str, asking: Coroutine[Any, Any, Entry | Failure]
  ) -> Entry | Failure:
    if key in self._in_flight:
      asking.close()
      return await asyncio.shield(self._in_flight[key])
    answer: asyncio.Future[Entry | Failure] = asyncio.get_running_loop().create_future()
    self._in_flight[key] = answer
    try:
      result = await asking
      answer.set_result(result)
      return result
    except BaseException as error:
      answer.set_exception(error)
      # Marked as seen: there may be nobody else who waits for it.
      answer.exception()
      raise
    finally:
      del self._in_flight[key]

  async def _recorded(self, request: TeacherRequest) -> Entry | Failure:
    try:
      return Entry(await self._teacher.ask(request), "")
    except RequestFailed as error:
      return Failure("failed", str(error))

  async def _ask(self, journal: Journal, key: str, request: TeacherRequest) -> Entry | Failure:
    reserved = self.budget.reserve(request)
    if reserved is None:
      return Failure(
        "unasked", f"the budget of {self._request_config.budget_tokens:,} tokens is spent"
      )
    self.requests += 1
    response = None
    try:
      response = await self._teacher.ask(request)
    except RequestFailed as error:
      self._failures_in_a_row += 1
      if self._failures_in_a_row >= self._hopeless_failures:
        raise UserError(
          f"--teacher {self._teacher.name}: {self._failures_in_a_row} requests in a row failed,"
          f" the last one so: {error}; check the server, then give the same command again:"
          f" {len(journal):,} answers are kept in {journal.path}"
        ) from None
      return Failure("failed", str(error))
    finally:
      self.budget.settle(request, reserved, response)
    self._failures_in_a_row = 0
    # Requests in flight together may all meet one short outage.
    self._hopeless_failures = max(
      _HOPELESS_FAILURES, 2 * self._request_config.max_requests_in_flight
    )
    return journal.append(key, response)
