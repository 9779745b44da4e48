"""Annotates a file: chooses rows, teacher and prompt from the options of `dss annotate`."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from dss_jax.annotation.default_prompt import default_prompt
from dss_jax.annotation.dry_run import dry_run
from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.prompts import Prompt, load_prompt, prompt_to_yaml, shipped_prompts
from dss_jax.annotation.run import RequestConfig, annotate
from dss_jax.config.schema import RequestPart
from dss_jax.data.published_rows import PublishedRows
from dss_jax.data.records import Row
from dss_jax.data.sources import FileRows
from dss_jax.data.task_files import TaskDefinition, load_task
from dss_jax.errors import UserError
from dss_jax.progress import say
from dss_jax.storage.atomic import is_standard_output, write_text
from dss_jax.storage.files import PathLike, exists, is_url
from dss_jax.teachers.access import DEFAULT_KEY_ENV
from dss_jax.teachers.base import Api, Teacher, split_teacher
from dss_jax.teachers.recorded import RecordedTeacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherOptions:
  """The teacher and how to connect to it.

  Attributes:
    teacher: openai:MODEL, recorded:FILE or t5:MODEL.
    url: the server of openai:MODEL; by default OpenAI's.
    key_env: the environment variable with the key.
    timeout_seconds: of one attempt of a request.
    request_form: what is known of the form of requests that the server takes.
    batch_size: number of rows that t5:MODEL decodes at a time.
  """

  teacher: str
  url: str | None = None
  key_env: str = DEFAULT_KEY_ENV
  timeout_seconds: float = 120.0
  request_form: tuple[RequestPart, ...] = ()
  batch_size: int = 32


def annotate_file(
  data: PathLike,
  output: PathLike,
  options: TeacherOptions,
  config: AnnotationConfig,
  request_config: RequestConfig,
  *,
  task: str | None = None,
  labels_as_text: bool = False,
  prompt: str | None = None,
  runner: str | None = None,
  runner_options: Sequence[str] = (),
) -> dict[str, Any]:
  """Annotates the rows of a file and returns the figures.

  Args:
    task: reads `data` as this task's published file.
    prompt: a shipped name or a YAML file. By default the task's prompt, else one made from the
      rows: it is written to prompt_path(output), and later runs read that file, edited or not.
    runner: DirectRunner or DataflowRunner, to annotate with Apache Beam and `runner_options`; the
      output may then be a URL.

  Raises:
    UserError: as annotate; options that exclude each other; a teacher that cannot be opened.
  """
  if runner is None and runner_options:
    raise UserError("--runner-option: needs --runner; add --runner DirectRunner, or leave it out")
  if runner is None or not is_url(output):
    _check_output(data, output)
  definition = None if task is None else load_task(task)
  rows, numbers = _row_reader(data, definition, labels_as_text)
  if runner is None:
    return annotate_rows(
      rows,
      output,
      options,
      config,
      request_config,
      task=definition,
      prompt=prompt,
      row_numbers=numbers,
    )
  if numbers is not None and len(numbers) != numbers[-1] + 1:
    raise UserError(
      f"--runner {runner}: the task's to_row leaves rows out, so recorded answers and rows would"
      " no longer fit; leave out --runner"
    )
  try:
    from dss_jax.annotation.beam_runner import annotate_with_beam
  except ImportError as error:
    raise UserError(
      f"--runner {runner}: Apache Beam is not installed ({error.name}); pip install 'dss-jax[beam]'"
    ) from None
  resolved_prompt, config = _resolve(rows, output, options, config, definition, prompt)
  return annotate_with_beam(
    rows,
    output,
    options.teacher,
    functools.partial(open_teacher, options, request_config.api),
    resolved_prompt,
    config,
    request_config,
    runner=runner,
    runner_options=runner_options,
    parse_task=task,
  )


def annotate_rows(
  rows: Callable[[], Iterable[Row]],
  output: PathLike,
  options: TeacherOptions,
  config: AnnotationConfig,
  request_config: RequestConfig,
  *,
  task: TaskDefinition | None = None,
  prompt: str | None = None,
  row_numbers: Sequence[int] | None = None,
) -> dict[str, Any]:
  """Annotates rows that are read already, as annotate_file; `row_numbers` as in annotate."""
  resolved_prompt, config = _resolve(rows, output, options, config, task, prompt)
  teacher = open_teacher(options, request_config.api)
  return annotate(rows, output, teacher, resolved_prompt, config, request_config, row_numbers)


def _resolve(
  rows: Callable[[], Iterable[Row]],
  output: PathLike,
  options: TeacherOptions,
  config: AnnotationConfig,
  task: TaskDefinition | None,
  prompt: str | None,
) -> tuple[Prompt, AnnotationConfig]:
  """Returns the prompt, and the config that applies to this kind of teacher."""
  kind, _ = split_teacher(options.teacher)
  if kind == "t5" and config.temperature:
    raise UserError(
      f"--temperature {config.temperature:g}: a t5: teacher decodes greedily; leave it at 0"
    )
  resolved_prompt = _choose_prompt(prompt, task, rows, kind, output)
  return resolved_prompt, config if kind == "openai" else dataclasses.replace(
    config, show_labels=False
  )


def dry_run_file(
  data: PathLike,
  options: TeacherOptions,
  config: AnnotationConfig,
  request_config: RequestConfig,
  *,
  task: str | None = None,
  labels_as_text: bool = False,
  prompt: str | None = None,
) -> dict[str, Any]:
  """Returns the requests and cost of annotate_file; sends and writes nothing."""
  definition = None if task is None else load_task(task)
  rows, _ = _row_reader(data, definition, labels_as_text)
  kind, _ = split_teacher(options.teacher)
  return dry_run(
    rows(), _choose_prompt(prompt, definition, rows, kind, None), config, request_config
  )


def _row_reader(
  data: PathLike, task: TaskDefinition | None, labels_as_text: bool
) -> tuple[Callable[[], Iterator[Row]], list[int] | None]:
  """Returns what reads a file's rows from the start, and a task's rows' numbers in the file."""
  if task is None:
    return FileRows(data, labels_as_text).__iter__, None
  rows = PublishedRows(task, data, labels_as_text)
  return rows.__iter__, [number for number, _ in rows.numbered()]


def prompt_path(output: PathLike) -> str:
  """Returns the path of the prompt that was made from the rows."""
  return f"{os.fspath(output)}.prompt.yaml"


def _check_output(data: PathLike, output: PathLike) -> None:
  """Raises UserError unless the output is a local file, in an existing folder, not the input."""
  name = os.fspath(output)
  if is_url(name) or is_standard_output(name):
    raise UserError(f"--output {name}: answers are appended to a file beside it; give a local file")
  if not os.path.isdir(os.path.dirname(name) or "."):
    raise UserError(f"--output {name}: its folder does not exist; create it, or give another")
  if os.path.isdir(name):
    raise UserError(f"--output {name}: is a folder; give a file in it")
  both_exist = os.path.exists(name) and not is_url(data) and os.path.exists(data)
  if both_exist and os.path.samefile(name, data):
    raise UserError(f"--output {name}: is the input; give another file")


def open_teacher(options: TeacherOptions, api: Api = "chat") -> Teacher:
  """Opens the teacher of the options; raises UserError if that is not possible."""
  kind, name = split_teacher(options.teacher)
  if kind != "openai" and (options.url or options.key_env != DEFAULT_KEY_ENV):
    raise UserError(
      f"--teacher-url and --teacher-key-env: need openai:MODEL; leave them out with {kind}:"
    )
  if kind == "recorded":
    return RecordedTeacher(name)
  return _http_teacher(name, options, api) if kind == "openai" else _student_teacher(name, options)


def _http_teacher(model: str, options: TeacherOptions, api: Api) -> Teacher:
  try:
    from dss_jax.teachers.http import HttpTeacher
  except ImportError as error:
    raise UserError(
      f"--teacher openai:{model}: aiohttp is not installed ({error.name});"
      " pip install 'dss-jax[teacher]'"
    ) from None
  return HttpTeacher(
    model,
    url=options.url,
    key_env=options.key_env,
    api=api,
    timeout_seconds=options.timeout_seconds,
    request_form=options.request_form,
  )


def _student_teacher(folder: str, options: TeacherOptions) -> Teacher:
  from dss_jax.config.schema import MeshConfig
  from dss_jax.parallel.mesh import make_mesh
  from dss_jax.storage.cache import keep_compiled_programs
  from dss_jax.student.predictor import Predictor
  from dss_jax.student.student import Student
  from dss_jax.teachers.student_teacher import StudentTeacher

  keep_compiled_programs()
  student = Student.open(folder)
  mesh = make_mesh(MeshConfig(), options.batch_size)
  predictor = Predictor(student, mesh, batch_size=options.batch_size)
  name = pathlib.Path(folder).name
  if not pathlib.Path(folder).is_dir():
    # NAME@VERSION: answers of another version, when an alias moves, are answers of another teacher.
    name = f"{student.directory.parent.name}@{student.directory.name}"
  return StudentTeacher(predictor, f"t5:{name}", batch_size=options.batch_size)


def _choose_prompt(
  given: str | None,
  task: TaskDefinition | None,
  rows: Callable[[], Iterable[Row]],
  kind: str,
  output: PathLike | None,
) -> Prompt:
  """Returns the given prompt, the task's, or one made from the rows."""
  if given is not None:
    return load_prompt(given)
  if task is not None and task.name in shipped_prompts():
    return load_prompt(task.name)
  if kind == "t5":
    # A student was trained on inputs without a prompt.
    return Prompt(instruction="(none: a student gets the input only)")
  if output is not None and exists(prompt_path(output)):
    say(f"prompt: {prompt_path(output)}, made by an earlier run; delete it to make a new one")
    return _with_task_parser(load_prompt(prompt_path(output)), task, kind)
  made = default_prompt(rows())
  if output is not None:
    write_text(prompt_path(output), prompt_to_yaml(made))
    say(
      f"prompt: made from the rows, {len(made.exemplars)} of them as examples;"
      f" written to {prompt_path(output)}, where you can edit it"
    )
  return _with_task_parser(made, task, kind)


def _with_task_parser(prompt: Prompt, task: TaskDefinition | None, kind: str) -> Prompt:
  """Makes the task's own parser read recorded answers, because they do not follow the prompt."""
  if task is None or kind != "recorded":
    return prompt
  return dataclasses.replace(
    prompt, parse=dataclasses.replace(prompt.parse, task=task, labels=None)
  )
