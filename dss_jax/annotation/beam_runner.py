"""The annotation as an Apache Beam pipeline: parts of the rows, each annotated by one worker.

The launcher reads and checks the rows and writes them in parts into a folder beside the output;
a worker annotates one part at a time just as `dss annotate` annotates a file, and leaves its
rows and its answers there; the launcher then joins the parts in the order of the input. Beam
repeats a part whose worker died, and a run that was killed is given again: answers that stand in
the folder are not asked for again. On local disks those are all answers that came; under a URL,
where nothing can be appended to, those of the parts that were finished.
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
from dss_jax.annotation.run import RequestConfig, annotate, check_samples, journal_path
from dss_jax.annotation.usage import Tally
from dss_jax.data.records import Row, write_rows
from dss_jax.data.task_definition import load_task
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

# Enough for a worker's while, few enough to hold: a part is what Beam hands out and repeats.
PART_ROWS = 1000


@dataclasses.dataclass(frozen=True)
class _Part:
  """One part of the rows, by the files that belong to it."""

  folder: str
  number: int

  @property
  def rows(self) -> str:
    """Lines of {"number": what recorded answers know the row by, "row": the row}."""
    return f"{self.folder}/{self.number:06d}.rows.jsonl"

  @property
  def output(self) -> str:
    return f"{self.folder}/{self.number:06d}.jsonl"

  @property
  def outcome(self) -> str:
    """{"figures": of annotate} or {"error": a sentence}; {} as long as there is neither."""
    return f"{self.folder}/{self.number:06d}.outcome.json"


@dataclasses.dataclass(frozen=True)
class _Work:
  """What a worker is told, in values that can be sent to any machine.

  Attributes:
    folder: of the parts.
    open_teacher: opens the teacher; a key comes from the worker's own environment.
    is_connected: whether it talks over connections, which belong to one part's event loop.
    prompt, parse_task: the prompt as YAML, and by what name the task of its parse rules is found.
  """

  folder: str
  open_teacher: Callable[[], Teacher]
  is_connected: bool
  prompt: str
  parse_task: str | None
  config: AnnotationConfig
  request_config: RequestConfig

  def made_prompt(self) -> Prompt:
    prompt = prompt_from(yaml.safe_load(self.prompt), "the prompt")
    task = None if self.parse_task is None else load_task(self.parse_task)
    return dataclasses.replace(prompt, parse=dataclasses.replace(prompt.parse, task=task))


def parts_folder(output: PathLike) -> str:
  """Where the parts of an output file lie, and their answers."""
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
  part_rows: int | None = None,
) -> dict[str, Any]:
  """As teacher.annotate.annotate, by Beam's workers: the same rows in the same order.

  Args:
    teacher: as --teacher names it.
    open_teacher: opens it; something that can be pickled.
    runner: DirectRunner or DataflowRunner.
    runner_options: Beam's own and the runner's, each "name=value", or "name" for a switch.
    parse_task: what load_task finds the task of the prompt's parse rules by; by default its name.
    part_rows: rows a part; by default PART_ROWS.

  Raises:
    UserError: as annotate does, by the first part that cannot be annotated; a runner, options
      and places that do not fit together; a pipeline that does not run.
  """
  started = time.monotonic()
  check_samples(config)
  kind, place = split_teacher(teacher)
  _check_places(output, kind, place, runner)
  if request_config.budget_tokens is not None:
    raise UserError(
      "--budget-tokens: Beam's workers cannot share a budget; leave it out, or leave --runner out"
    )
  options = pipeline_options(runner_options)
  parts = _write_parts(rows(), parts_folder(output), part_rows or PART_ROWS)
  rules = prompt.parse
  work = _Work(
    parts_folder(output),
    open_teacher,
    kind == "openai",
    prompt_to_yaml(dataclasses.replace(prompt, parse=dataclasses.replace(rules, task=None))),
    None if rules.task is None else parse_task or rules.task.name,
    config,
    request_config,
  )
  _run(work, len(parts), runner, options)
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
  """Beam's options from "name=value" and "name"; UserError where Beam does not know one."""
  known = set(PipelineOptions([]).get_all_options())
  for text in texts:
    name = text.partition("=")[0]
    if name not in known and name.removeprefix("no_") not in known:
      near = difflib.get_close_matches(name, known, 1)
      mend = f"did you mean {near[0]}?" if near else "write it as Beam's documentation has it"
      raise UserError(f"--runner-option {text}: Beam has no option {name!r}; {mend}")
  said = io.StringIO()
  try:
    # Beam's parser prints and exits.
    with contextlib.redirect_stderr(said):
      options = PipelineOptions([f"--{text}" for text in texts])
      options.get_all_options()
  except SystemExit:
    why = said.getvalue().strip().rpartition("error: ")[2]
    raise UserError(f"--runner-option: {why}; write NAME=VALUE, or NAME for a switch") from None
  return options


def _check_places(output: PathLike, kind: str, place: str, runner: str) -> None:
  """Raises UserError where workers on other machines would have to see this one's files."""
  if runner != "DataflowRunner":
    return
  if not is_url(output):
    raise UserError(
      f"--output {os.fspath(output)}: the workers of {runner} write to a bucket; name a URL"
      " like gs://BUCKET/FILE.jsonl"
    )
  if kind == "t5" or (kind == "recorded" and not is_url(place)):
    raise UserError(
      f"--teacher {kind}:{place}: the workers of {runner} cannot read it; give openai:MODEL, or"
      " recorded: with a URL"
    )


def _write_parts(rows: Iterable[Row], folder: str, part_rows: int) -> list[_Part]:
  """The rows in parts, each in a file of its own; nothing is asked before all are good."""
  make_folder(folder)
  parts: list[_Part] = []
  lines: list[bytes] = []

  def end_part() -> None:
    part = _Part(folder, len(parts))
    write_bytes(part.rows, b"".join(lines))
    # What an earlier run left is no outcome of this one.
    write_bytes(part.outcome, b"{}")
    parts.append(part)
    lines.clear()

  for number, row in enumerate(rows):
    lines.append(json.dumps({"number": number, "row": row}).encode("ascii") + b"\n")
    if len(lines) == part_rows:
      end_part()
  if lines:
    end_part()
  return parts


class _AnnotatePart(beam.DoFn):
  """Annotates parts by their numbers; gives nothing: what comes of a part lies in its files."""

  def __init__(self, work: _Work):
    self._work = work
    self._prompt: Prompt | None = None
    self._lasting: Teacher | None = None
    self._error: UserError | None = None

  def process(self, number: int) -> None:
    part = _Part(self._work.folder, number)
    outcome: dict[str, Any]
    try:
      # What ended one part (no such server, a refused key) would end the others, each as slowly.
      if self._error is not None:
        raise self._error
      outcome = {"figures": self._annotate(part)}
    except UserError as error:
      # Left to itself, Beam would repeat the part, and then show a traceback.
      self._error = error
      outcome = {"error": str(error)}
    write_bytes(part.outcome, json.dumps(outcome).encode())

  def teardown(self) -> None:
    if self._lasting is not None:
      asyncio.run(self._lasting.close())
      self._lasting = None

  def _annotate(self, part: _Part) -> dict[str, Any]:
    with open_bytes(part.rows) as file:
      lines = [json.loads(line) for line in file]
    work = self._work
    self._prompt = self._prompt or work.made_prompt()
    with contextlib.ExitStack() as stack:
      output = part.output
      if is_url(output):
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dss_part_"))
        output = os.path.join(folder, "part.jsonl")
        # Kept even where the part fails: what was answered is not asked again.
        stack.callback(_copy, journal_path(output), journal_path(part.output))
        _copy(journal_path(part.output), journal_path(output))
      figures = annotate(
        lambda: [line["row"] for line in lines],
        output,
        self._teacher(),
        self._prompt,
        work.config,
        work.request_config,
        [line["number"] for line in lines],
      )
      if output != part.output:
        _copy(output, part.output)
    return figures

  def _teacher(self) -> Teacher:
    if self._work.is_connected:
      return self._work.open_teacher()
    if self._lasting is None:
      self._lasting = self._work.open_teacher()
    return _Lasting(self._lasting)


class _Lasting:
  """A teacher that outlives the part that closes it: read from disk once, it serves for all."""

  def __init__(self, teacher: Teacher):
    self._teacher = teacher
    self.name = teacher.name
    self.is_recorded = teacher.is_recorded
    self.retries = 0

  async def ask(self, request: TeacherRequest) -> TeacherResponse:
    return await self._teacher.ask(request)

  async def close(self) -> None:
    pass


def _run(work: _Work, count: int, runner: str, options: PipelineOptions) -> None:
  """Runs the pipeline to its end; raises UserError where it cannot be built, or failed."""
  try:
    pipeline = beam.Pipeline(runner=runner, options=options)
  except (ImportError, ValueError) as error:
    raise UserError(
      f"--runner {runner}: {reason(error)}; give what it asks for by --runner-option, or install"
      " what is missing"
    ) from None
  numbers = pipeline | "Parts" >> beam.Create(range(count))
  # Without it, a runner may give all parts to one worker.
  numbers = numbers | "Spread" >> beam.Reshuffle()
  _ = numbers | "Annotate" >> beam.ParDo(_AnnotatePart(work))
  try:
    state = str(pipeline.run().wait_until_finish())
  except Exception as error:
    if runner == "DirectRunner":
      raise
    state = reason(error)
  if state != "DONE":
    raise UserError(
      f"--runner {runner}: the pipeline ended otherwise than it should ({state}); see its log,"
      " then give the same command again"
    )


def _figures(part: _Part) -> dict[str, Any]:
  with open_bytes(part.outcome) as file:
    outcome = json.loads(file.read())
  if "figures" not in outcome:
    raise UserError(outcome.get("error", f"{part.rows}: was not annotated; give the command again"))
  return outcome["figures"]


def _joined(parts: Iterable[_Part], tally: Tally) -> Iterator[Row]:
  for part in parts:
    with open_bytes(part.output) as file:
      for line in file:
        row = json.loads(line)
        tally.add(row)
        yield row


def _remove_parts(parts: Sequence[_Part]) -> None:
  """Removes all but the answers; the folder, too, where there are none."""
  for part in parts:
    for name in (part.rows, part.output, part.outcome):
      remove(name)
  folder = parts[0].folder
  if is_dir(folder) and not list_folder(folder):
    remove(folder)


def _copy(source: str, target: str) -> None:
  """Copies a file that exists."""
  if exists(source):
    write_bytes(target, read_bytes(source))
