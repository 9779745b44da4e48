"""Annotates rows: concurrent requests, constant memory, resumable, output in input order."""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from typing import Any

from dss_jax.annotation.journal import Entry, Journal, key_of
from dss_jax.annotation.outcome import AnnotationConfig, Failure, Outcomes
from dss_jax.annotation.prompts import Mode, Prompt
from dss_jax.annotation.stopping import FailureStreak, FirstAnswers
from dss_jax.annotation.usage import Prices, Tally
from dss_jax.data.records import Row, write_rows
from dss_jax.errors import UserError
from dss_jax.progress import ProgressLine, progress_line
from dss_jax.storage.files import PathLike
from dss_jax.teachers.base import Api, RequestFailed, Teacher, TeacherRequest
from dss_jax.teachers.budget import TokenBudget
from dss_jax.teachers.retrying import BudgetSpent, RetryingTeacher, RetryPolicy

# Maximum number of rows read after the oldest unfinished row.
LOOK_AHEAD_ROWS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestConfig:
  """How requests are sent.

  Attributes:
    api: "chat" sends chat messages, "completion" plain text to continue.
    max_requests_in_flight: maximum number of concurrent requests.
    budget_tokens: maximum number of tokens, including answers from the journal.
    prices: for the cost.
    retry_policy: attempts of a request, and the waits between them.
    keep_going: whether refusals and unparsable answers of any number are no reason to stop.
  """

  api: Api = "chat"
  max_requests_in_flight: int = 32
  budget_tokens: int | None = None
  prices: Prices = dataclasses.field(default_factory=Prices)
  retry_policy: RetryPolicy = dataclasses.field(default_factory=RetryPolicy)
  keep_going: bool = False


def journal_path(output: PathLike) -> str:
  """Returns the path of an output file's journal."""
  return f"{os.fspath(output)}.answers.jsonl"


def annotate(
  rows: Callable[[], Iterable[Row]],
  output: PathLike,
  teacher: Teacher,
  prompt: Prompt,
  config: AnnotationConfig,
  request_config: RequestConfig | None = None,
  row_numbers: Sequence[int] | None = None,
) -> dict[str, Any]:
  """Requests missing labels and rationales from the teacher, writes the rows, returns figures.

  Reads the rows twice: first to check and count them, then to send requests. Each answer is
  written to journal_path(output) when it arrives; the output is written atomically, in the order
  of the rows, when all rows are done.

  Args:
    row_numbers: the index of each row in recorded answers; by default its position, from 0.

  Raises:
    UserError: rows or output are invalid, or the teacher does not answer.
  """
  request_config = request_config or RequestConfig()
  total = sum(1 for _ in rows())
  started = time.monotonic()
  tally = Tally()
  numbered = zip(itertools.count() if row_numbers is None else row_numbers, rows(), strict=False)
  run = _Run(numbered, output, teacher, prompt, config, request_config)
  with progress_line("annotating", total) as line:

    def written() -> Generator[Row, None, None]:
      with contextlib.closing(run.rows()) as finished:
        for row in finished:
          tally.add(row)
          line.update(tally.rows, run.note(tally.rows, total))
          yield row

    run.report_journal(line)
    try:
      with contextlib.closing(written()) as annotated:
        write_rows(output, annotated)
    finally:
      run.close()
  seconds = time.monotonic() - started
  return {
    **tally.to_json(),
    "requests": run.requests,
    "answers_from_journal": run.from_journal,
    "retries": run.retries,
    "tokens_spent": run.budget.spent,
    "cost": run.cost,
    "seconds": round(seconds, 3),
    "rows_per_second": round(tally.rows / max(seconds, 1e-9), 2),
    "teacher": teacher.name,
    "prompt": prompt.digest,
    "output": os.fspath(output),
  }


def request_for(
  row: Row,
  index: int,
  mode: Mode,
  sample: int,
  prompt: Prompt,
  config: AnnotationConfig,
  api: Api,
) -> TeacherRequest:
  """Makes the request for one sample of a row."""
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
class _PendingRow:
  """A row that waits for `missing` samples; `done` is set when the output waits for it."""

  row: Row
  index: int
  mode: Mode | None
  answers: list[Entry | Failure | None]
  missing: int
  done: asyncio.Future[None] | None = None


class _Run:
  """One pass over the rows: a window of pending rows, and workers that request samples."""

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
    self._window: collections.deque[_PendingRow] = collections.deque()
    self._jobs: collections.deque[tuple[_PendingRow, int]] = collections.deque()
    self._idle: list[asyncio.Future[None]] = []
    self._in_flight: dict[str, asyncio.Future[Entry | Failure]] = {}
    self._error: Exception | None = None
    self._failures = FailureStreak(request_config.max_requests_in_flight, request_config.keep_going)
    is_open = request_config.keep_going or teacher.is_recorded
    self._first_answers = FirstAnswers(teacher.name, is_open)
    self._started = time.monotonic()
    self.budget = TokenBudget(request_config.budget_tokens)
    self._retrying = RetryingTeacher(teacher, request_config.retry_policy, self.budget)
    self.requests = 0
    self.from_journal = 0

  def rows(self) -> Generator[Row, None, None]:
    """Yields the annotated rows in order; the event loop runs while the next one is pending."""
    with asyncio.Runner() as runner:
      # Not runner.run, which sets and resets signal handlers at every call.
      run = runner.get_loop().run_until_complete
      workers = run(self._start())
      try:
        while rows := run(self._next_rows()):
          yield from rows
      finally:
        run(self._stop(workers))

  def report_journal(self, line: ProgressLine) -> None:
    """Prints the state of the journal of an earlier run."""
    if self._journal is None:
      return
    if len(self._journal):
      line.say(f"{len(self._journal):,} answers of an earlier run are in {self._journal.path}")
    if self._journal.unreadable_lines:
      line.say(
        f"warning: {self._journal.path}: {self._journal.unreadable_lines:,} lines are damaged;"
        " their requests are sent again"
      )

  def note(self, done: int, total: int) -> str:
    """Returns rate, tokens, cost and expected remaining cost."""
    seconds = max(time.monotonic() - self._started, 1e-9)
    note = f"{done / seconds:.1f} rows/s  {self.budget.spent:,} tokens"
    cost = self.cost
    if cost is not None:
      note += f"  cost {cost:.4f}, about {cost * (total - done) / done:.4f} to come"
    return note

  @property
  def cost(self) -> float | None:
    """Returns the cost so far, including answers from the journal."""
    return self._request_config.prices.cost(
      self.budget.prompt_tokens, self.budget.completion_tokens
    )

  @property
  def retries(self) -> int:
    """Returns the number of requests sent again so far."""
    return self._retrying.retries

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
    """Waits for the finished rows at the head of the window; returns [] at the end."""
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
      rows.append(self._annotated_row(self._window.popleft()))
    return rows

  def _fill(self) -> None:
    """Reads rows until the window is full, and wakes workers for their samples."""
    while len(self._window) < LOOK_AHEAD_ROWS:
      item = next(self._rows, None)
      if item is None:
        break
      index, row = item
      mode = self._config.mode(row)
      samples = 0 if mode is None else self._config.samples
      pending = _PendingRow(row, index, mode, [None] * samples, samples)
      self._window.append(pending)
      self._jobs.extend((pending, sample) for sample in range(samples))
    for _ in range(min(len(self._idle), len(self._jobs))):
      idle = self._idle.pop()
      if not idle.done():
        idle.set_result(None)

  def _annotated_row(self, pending: _PendingRow) -> Row:
    if pending.mode is None:
      return self._outcomes.untouched(pending.row)
    answers = [answer for answer in pending.answers if answer is not None]
    return self._outcomes.row(pending.row, pending.mode, answers)

  async def _work(self) -> None:
    """Runs one worker: requests one sample after another."""
    while True:
      while not self._jobs:
        idle = asyncio.get_running_loop().create_future()
        self._idle.append(idle)
        await idle
      pending, sample = self._jobs.popleft()
      try:
        answer = await self._answer(pending, sample)
      # Raised again in _next_rows, where it ends the run.
      except Exception as error:
        # The first error is the cause; later ones may be consequences.
        self._error = self._error or error
        head = self._window[0].done
        if head is not None and not head.done():
          head.set_exception(self._error)
        return
      pending.answers[sample] = answer
      pending.missing -= 1
      if not pending.missing and pending.done is not None:
        pending.done.set_result(None)

  async def _answer(self, pending: _PendingRow, sample: int) -> Entry | Failure:
    """Returns one sample's answer: from the journal, an equal request in flight, or the teacher."""
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
      return await self._ask_recorded(request)
    key = key_of(self._teacher.name, self._prompt.digest, request)
    entry = self._journal.get(key)
    if entry is not None:
      self.from_journal += 1
      self.budget.count(request, entry.response)
      await self._first_answers.enter()
      await self._note_answer(entry, pending)
      return entry
    # Equal rows share one request.
    return await self._shared(key, self._ask(self._journal, key, request, pending))

  async def _shared(
    self, key: str, request: Coroutine[Any, Any, Entry | Failure]
  ) -> Entry | Failure:
    if key in self._in_flight:
      request.close()
      return await asyncio.shield(self._in_flight[key])
    answer: asyncio.Future[Entry | Failure] = asyncio.get_running_loop().create_future()
    self._in_flight[key] = answer
    try:
      result = await request
      answer.set_result(result)
      return result
    except BaseException as error:
      answer.set_exception(error)
      # Avoids asyncio's warning if no other row waits for this answer.
      answer.exception()
      raise
    finally:
      del self._in_flight[key]

  async def _ask_recorded(self, request: TeacherRequest) -> Entry | Failure:
    try:
      return Entry(await self._teacher.ask(request), "")
    except RequestFailed as error:
      return Failure("failed", str(error))

  async def _ask(
    self, journal: Journal, key: str, request: TeacherRequest, pending: _PendingRow
  ) -> Entry | Failure:
    await self._first_answers.enter()
    self.requests += 1
    try:
      response = await self._retrying.ask(request)
    except (RequestFailed, BudgetSpent) as error:
      await self._first_answers.failed()
      return self._failure(error, journal)
    self._failures.end()
    entry = journal.append(key, response)
    await self._note_answer(entry, pending)
    return entry

  def _failure(self, error: RequestFailed | BudgetSpent, journal: Journal) -> Failure:
    """Returns the failure of a row; raises UserError if it ends the run."""
    if isinstance(error, BudgetSpent):
      self.requests -= 1
      return Failure("unasked", f"the budget of {self.budget.limit:,} tokens is spent")
    streak = self._failures.add(error)
    if streak is not None:
      mend = "check the server" if error.may_pass else "change the request, or give --keep-going"
      raise UserError(
        f"--teacher {self._teacher.name}: {streak} consecutive requests failed, the last with:"
        f" {error}; {mend}, then run the same command again: {len(journal):,} answers are kept in"
        f" {journal.path}"
      ) from None
    return Failure("failed", str(error))

  async def _note_answer(self, entry: Entry, pending: _PendingRow) -> None:
    """Ends the run if none of its first answers is useful."""
    if self._first_answers.is_open:
      return
    assert pending.mode is not None
    parsed = self._outcomes.parsed(entry.response, pending.row, pending.mode)
    is_useful = self._config.is_useful(parsed, pending.row)
    await self._first_answers.answered(entry.response, parsed, is_useful)
