"""Annotation as an Apache Beam pipeline: the rows are split into parts, one worker per part.

The launcher checks the rows and writes them as parts into a folder beside the output. A worker
annotates one part at a time, as `dss annotate` annotates a file, and writes rows and answers into
that folder. The launcher then joins the parts in input order. Beam repeats a part whose worker
died, and a killed run can be repeated; neither requests again an answer that is in the folder. On
local disks that is every answer received; under a URL, where files cannot be appended to, the
answers of the parts that ended.
"""

import asyncio
import contextlib
import dataclasses
import difflib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import yaml
from apache_beam.options.pipeline_options import PipelineOptions

from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.prompts import Prompt, prompt_from, prompt_to_yaml
from dss_jax.annotation.run import RequestConfig, annotate, journal_path
from dss_jax.annotation.usage import Tally
from dss_jax.data.records import Row, write_rows
from dss_jax.data.task_files import load_task
from dss_jax.errors import UserError
from dss_jax.storage.atomic import make_folder, remove, write_bytes
from dss_jax.storage.files import (
  PathLike,
  exists,
  is_dir,
  is_url,
  list_folder,
  open_bytes,
  read_bytes,
  reason,
)
from dss_jax.teachers.base import Teacher, TeacherRequest, TeacherResponse, split_teacher

# Small enough for memory, large enough to keep a worker busy; Beam schedules and repeats parts.
ROWS_PER_PART = 1000


@dataclasses.dataclass(frozen=True)
class _Part:
  """The files of one part of the rows."""

  folder: str
  number: int

  @property
  def rows(self) -> str:
    """Returns the path of lines {"number": row number for recorded answers, "row": the row}."""
    return f"{self.folder}/{self.number:06d}.rows.jsonl"

  @property
  def output(self) -> str:
    return f"{self.folder}/{self.number:06d}.jsonl"

  @property
  def outcome(self) -> str:
    """Returns the path of {"figures": of annotate} or {"error": message}; {} until then."""
    return f"{self.folder}/{self.number:06d}.outcome.json"


@dataclasses.dataclass(frozen=True)
class _Job:
  """The arguments of a worker; all can be pickled.

  Attributes:
    folder: the folder of the parts.
    open_teacher: opens the teacher; a key comes from the worker's own environment.
    uses_event_loop: whether the teacher has connections, which belong to one part's event loop.
    prompt: the prompt as YAML, without the task of its parse rules.
    parse_task: the name or file of that task, for load_task.
  """

  folder: str
  open_teacher: Callable[[], Teacher]
  uses_event_loop: bool
  prompt: str
  parse_task: str | None
  config: AnnotationConfig
  request_config: RequestConfig

  def load_prompt(self) -> Prompt:
    prompt = prompt_from(yaml.safe_load(self.prompt), "the prompt")
    task = None if self.parse_task is None else load_task(self.parse_task)
    return dataclasses.replace(prompt, parse=dataclasses.replace(prompt.parse, task=task))


def parts_folder(output: PathLike) -> str:
  """Returns the folder of an output file's parts and their answers."""
  name = os.fspath(output)
  return f"{name if is_url(name) else os.path.abspath(name)}.parts"


def annotate_with_beam(
  rows: Callable[[], Iterable[Row]],
  output: PathLike,
  teacher: str,
  open_teacher: Callable[[], Teacher],
  prompt: Prompt,
  config: AnnotationConfig,
  request_config: RequestConfig,
  *,
  runner: str,
  runner_options: Sequence[str] = (),
  parse_task: str | None = None,
) -> dict[str, Any]:
  """Annotates rows with Beam's workers; same output as annotation.run.annotate.

  Args:
    teacher: the value of --teacher.
    open_teacher: opens it; must be picklable.
    runner: DirectRunner or DataflowRunner.
    runner_options: options of Beam and the runner, each "name=value", or "name" for a switch.
    parse_task: the name or file of the task of the prompt's parse rules; by default its name.

  Raises:
    UserError: as annotate, for the first part that fails; an invalid runner, option or path; a
      pipeline that fails.
  """
  started = time.monotonic()
  kind, location = split_teacher(teacher)
  _check_paths(output, kind, location, runner)
  if request_config.budget_tokens is not None:
    raise UserError(
      "--budget-tokens: Beam's workers cannot share a budget; leave out this flag or --runner"
    )
  options = pipeline_options(runner_options)
  parts = _write_parts(rows(), parts_folder(output), ROWS_PER_PART)
  rules = prompt.parse
  job = _Job(
    parts_folder(output),
    open_teacher,
    kind == "openai",
    prompt_to_yaml(dataclasses.replace(prompt, parse=dataclasses.replace(rules, task=None))),
    None if rules.task is None else parse_task or rules.task.name,
    config,
    request_config,
  )
  _run(job, len(parts), runner, options)
  figures = [_figures(part) for part in parts]
  tally = Tally()
  write_rows(output, _joined(parts, tally))
  _remove_parts(parts)
  seconds = time.monotonic() - started
  costs = [one["cost"] for one in figures]
  counts = ("requests", "answers_from_journal", "retries", "tokens_spent")
  return {
    **tally.to_json(),
    **{name: sum(one[name] for one in figures) for name in counts},
    "cost": None if None in costs else sum(costs),
    "seconds": round(seconds, 3),
    "rows_per_second": round(tally.rows / max(seconds, 1e-9), 2),
    "teacher": figures[0]["teacher"],
    "prompt": prompt.digest,
    "output": os.fspath(output),
  }


def pipeline_options(texts: Sequence[str]) -> PipelineOptions:
  """Parses Beam's options, "name=value" or "name"; raises UserError for an unknown one."""
  known = set(PipelineOptions([]).get_all_options())
  for text in texts:
    name = text.partition("=")[0]
    if name not in known and name.removeprefix("no_") not in known:
      near = difflib.get_close_matches(name, known, 1)
      mend = f"did you mean {near[0]}?" if near else "see Beam's documentation"
      raise UserError(f"--runner-option {text}: Beam has no option {name!r}; {mend}")
  stderr = io.StringIO()
  try:
    # Beam's parser prints and exits.
    with contextlib.redirect_stderr(stderr):
      options = PipelineOptions([f"--{text}" for text in texts])
      options.get_all_options()
  except SystemExit:
    problem = stderr.getvalue().strip().rpartition("error: ")[2]
    raise UserError(f"--runner-option: {problem}; write NAME=VALUE, or NAME for a switch") from None
  return options


def _check_paths(output: PathLike, kind: str, location: str, runner: str) -> None:
  """Raises UserError if workers on other machines would need local files."""
  if runner != "DataflowRunner":
    return
  if not is_url(output):
    raise UserError(
      f"--output {os.fspath(output)}: the workers of {runner} write to a bucket; give a URL"
      " like gs://BUCKET/FILE.jsonl"
    )
  if kind == "t5" or (kind == "recorded" and not is_url(location)):
    raise UserError(
      f"--teacher {kind}:{location}: the workers of {runner} cannot read it; give openai:MODEL, or"
      " recorded: with a URL"
    )


def _write_parts(rows: Iterable[Row], folder: str, rows_per_part: int) -> list[_Part]:
  """Writes each part of the rows into its own file, so that bad rows are found first."""
  make_folder(folder)
  parts: list[_Part] = []
  lines: list[bytes] = []

  def end_part() -> None:
    part = _Part(folder, len(parts))
    write_bytes(part.rows, b"".join(lines))
    # Overwrites the outcome of an earlier run.
    write_bytes(part.outcome, b"{}")
    parts.append(part)
    lines.clear()

  for number, row in enumerate(rows):
    lines.append(json.dumps({"number": number, "row": row}).encode("ascii") + b"\n")
    if len(lines) == rows_per_part:
      end_part()
  if lines:
    end_part()
  return parts


class _AnnotatePart(beam.DoFn):
  """Annotates the part of a number; the result is in the part's files."""

  def __init__(self, job: _Job):
    self._job = job
    self._prompt: Prompt | None = None
    self._shared_teacher: Teacher | None = None
    self._error: UserError | None = None

  def process(self, number: int) -> None:
    part = _Part(self._job.folder, number)
    outcome: dict[str, Any]
    try:
      # The cause (no such server, a rejected key) would make the other parts fail as well.
      if self._error is not None:
        raise self._error
      outcome = {"figures": self._annotate(part)}
    except UserError as error:
      # If it were raised, Beam would repeat the part and then print a traceback.
      self._error = error
      outcome = {"error": str(error)}
    write_bytes(part.outcome, json.dumps(outcome).encode())

  def teardown(self) -> None:
    if self._shared_teacher is not None:
      asyncio.run(self._shared_teacher.close())
      self._shared_teacher = None

  def _annotate(self, part: _Part) -> dict[str, Any]:
    with open_bytes(part.rows) as file:
      lines = [json.loads(line) for line in file]
    job = self._job
    self._prompt = self._prompt or job.load_prompt()
    with contextlib.ExitStack() as stack:
      output = part.output
      if is_url(output):
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dss_part_"))
        output = os.path.join(folder, "part.jsonl")
        # Kept even if the part fails, so that its answers are not requested again.
        stack.callback(_copy, journal_path(output), journal_path(part.output))
        _copy(journal_path(part.output), journal_path(output))
      figures = annotate(
        lambda: [line["row"] for line in lines],
        output,
        self._teacher(),
        self._prompt,
        job.config,
        job.request_config,
        [line["number"] for line in lines],
      )
      if output != part.output:
        _copy(output, part.output)
    return figures

  def _teacher(self) -> Teacher:
    if self._job.uses_event_loop:
      return self._job.open_teacher()
    if self._shared_teacher is None:
      self._shared_teacher = self._job.open_teacher()
    return _SharedTeacher(self._shared_teacher)


class _SharedTeacher:
  """A teacher that is loaded once for all parts; closing it after a part does nothing."""

  def __init__(self, teacher: Teacher):
    self._teacher = teacher
    self.name = teacher.name
    self.is_recorded = teacher.is_recorded

  async def ask(self, request: TeacherRequest) -> TeacherResponse:
    return await self._teacher.ask(request)

  async def close(self) -> None:
    pass


def _run(job: _Job, count: int, runner: str, options: PipelineOptions) -> None:
  """Runs the pipeline; raises UserError if it cannot be built or fails."""
  try:
    pipeline = beam.Pipeline(runner=runner, options=options)
  except (ImportError, ValueError) as error:
    raise UserError(
      f"--runner {runner}: {reason(error)}; give the missing --runner-option, or install"
      " the missing package"
    ) from None
  numbers = pipeline | "Parts" >> beam.Create(range(count))
  # Without the reshuffle, a runner may give all parts to one worker.
  numbers = numbers | "Spread" >> beam.Reshuffle()
  _ = numbers | "Annotate" >> beam.ParDo(_AnnotatePart(job))
  try:
    state = str(pipeline.run().wait_until_finish())
  except Exception as error:
    if runner == "DirectRunner":
      raise
    state = reason(error)
  if state != "DONE":
    raise UserError(
      f"--runner {runner}: the pipeline failed ({state}); see its log,"
      " then run the same command again"
    )


def _figures(part: _Part) -> dict[str, Any]:
  with open_bytes(part.outcome) as file:
    outcome = json.loads(file.read())
  if "figures" not in outcome:
    raise UserError(outcome.get("error", f"{part.rows}: was not annotated; run the command again"))
  return outcome["figures"]


def _joined(parts: Iterable[_Part], tally: Tally) -> Iterator[Row]:
  for part in parts:
    with open_bytes(part.output) as file:
      for line in file:
        row = json.loads(line)
        tally.add(row)
        yield row


def _remove_parts(parts: Sequence[_Part]) -> None:
  """Removes all files but the answers, and the folder if it is empty then."""
  for part in parts:
    for name in (part.rows, part.output, part.outcome):
      remove(name)
  folder = parts[0].folder
  if is_dir(folder) and not list_folder(folder):
    remove(folder)


def _copy(source: str, target: str) -> None:
  """Copies a file if it exists."""
  if exists(source):
    write_bytes(target, read_bytes(source))
