"""From the options of `dss annotate` to a run: which rows, which teacher, which prompt."""

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
from dss_jax.annotation.run import RequestConfig, annotate, check_samples
from dss_jax.data.records import Row, read_rows
from dss_jax.data.task_definition import TaskDefinition, load_task
from dss_jax.data.task_rows import published_rows
from dss_jax.errors import UserError
from dss_jax.progress import say
from dss_jax.storage.atomic import write_text
from dss_jax.storage.files import PathLike, exists, is_url
from dss_jax.teachers.access import DEFAULT_KEY_ENV
from dss_jax.teachers.base import Teacher, split_teacher
from dss_jax.teachers.recorded import RecordedTeacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherOptions:
  """Which teacher, and how it is reached.

  Attributes:
    teacher: openai:MODEL, recorded:FILE or t5:MODEL.
    url: of the server of openai:MODEL; by default OpenAI's own.
    key_env: the environment variable with the key.
    timeout_seconds, attempts: of one request.
    batch_size: rows that t5:MODEL decodes at a time.
  """

  teacher: str
  url: str | None = None
  key_env: str = DEFAULT_KEY_ENV
  timeout_seconds: float = 120.0
  attempts: int = 6
  batch_size: int = 32


def annotate_file(
  data: PathLike,
  output: PathLike,
  options: TeacherOptions,
  config: AnnotationConfig,
  request_config: RequestConfig,
  *,
  task: str | None = None,
  prompt: str | None = None,
  runner: str | None = None,
  runner_options: Sequence[str] = (),
) -> dict[str, Any]:
  """Annotates the rows of a file, or of a published file as `task` reads it; the figures.

  Args:
    runner: DirectRunner or DataflowRunner: Apache Beam's workers do it, as `runner_options` say;
      the output may then be a URL.
    prompt: a shipped name or a YAML file; by default the task's, else one made from the rows,
      which is written to prompt_path(output) and read from there again, edited or not.

  Raises:
    UserError: as annotate does; options that do not fit together; a teacher that cannot be
      opened.
  """
  check_samples(config)
  if runner is None and runner_options:
    raise UserError("--runner-option: belongs to --runner; give --runner DirectRunner, or none")
  if runner is None or not is_url(output):
    check_output(data, output)
  definition = None if task is None else load_task(task)
  rows = row_reader(data, definition)
  if runner is None:
    return annotate_rows(
      rows, output, options, config, request_config, task=definition, prompt=prompt
    )
  try:
    from dss_jax.annotation.beam_runner import annotate_with_beam
  except ImportError as error:
    raise UserError(
      f"--runner {runner}: Apache Beam is not installed ({error.name}); pip install 'dss-jax[beam]'"
    ) from None
  chosen, config = _settled(rows, output, options, config, definition, prompt)
  return annotate_with_beam(
    rows,
    output,
    options.teacher,
    functools.partial(open_teacher, options, request_config.api),
    chosen,
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
  numbers: Sequence[int] | None = None,
) -> dict[str, Any]:
  """As annotate_file, for rows that are read already; `numbers` as for annotate."""
  chosen, config = _settled(rows, output, options, config, task, prompt)
  teacher = open_teacher(options, request_config.api)
  return annotate(rows, output, teacher, chosen, config, request_config, numbers)


def _settled(
  rows: Callable[[], Iterable[Row]],
  output: PathLike,
  options: TeacherOptions,
  config: AnnotationConfig,
  task: TaskDefinition | None,
  prompt: str | None,
) -> tuple[Prompt, AnnotationConfig]:
  """The prompt, and the config as this kind of teacher allows them."""
  check_samples(config)
  kind, _ = split_teacher(options.teacher)
  if kind == "t5" and config.temperature:
    raise UserError(
      f"--temperature {config.temperature:g}: a t5: teacher decodes greedily; leave it at 0"
    )
  chosen = _prompt(prompt, task, rows, kind, output)
  return chosen, config if kind == "openai" else dataclasses.replace(config, show_labels=False)


def dry_run_file(
  data: PathLike,
  options: TeacherOptions,
  config: AnnotationConfig,
  request_config: RequestConfig,
  *,
  task: str | None = None,
  prompt: str | None = None,
) -> dict[str, Any]:
  """What annotate_file would ask and cost; asks and writes nothing."""
  check_samples(config)
  definition = None if task is None else load_task(task)
  rows = row_reader(data, definition)
  kind, _ = split_teacher(options.teacher)
  return dry_run(rows(), _prompt(prompt, definition, rows, kind, None), config, request_config)


def row_reader(data: PathLike, task: TaskDefinition | None) -> Callable[[], Iterator[Row]]:
  """The rows of a file, anew at each call."""
  if task is None:
    return lambda: read_rows(data)
  return lambda: published_rows(task, data)


def prompt_path(output: PathLike) -> str:
  """Where a prompt that was made from the rows is kept."""
  return f"{os.fspath(output)}.prompt.yaml"


def check_output(data: PathLike, output: PathLike) -> None:
  """Raises UserError where the output cannot be what it must: a local file of its own."""
  name = os.fspath(output)
  if is_url(name):
    raise UserError(f"--output {name}: answers are kept beside it as they come; name a local file")
  if not os.path.isdir(os.path.dirname(name) or "."):
    raise UserError(f"--output {name}: its folder does not exist; make it, or name another")
  if os.path.isdir(name):
    raise UserError(f"--output {name}: is a folder; name a file in it")
  both_exist = os.path.exists(name) and not is_url(data) and os.path.exists(data)
  if both_exist and os.path.samefile(name, data):
    raise UserError(f"--output {name}: is the input; name another file")


def open_teacher(options: TeacherOptions, api: str = "chat") -> Teacher:
  """The teacher that the options name; raises UserError where it cannot be opened."""
  kind, name = split_teacher(options.teacher)
  if kind != "openai" and (options.url or options.key_env != DEFAULT_KEY_ENV):
    raise UserError(f"--teacher-url and --teacher-key-env belong to openai:MODEL, not to {kind}:")
  if kind == "recorded":
    return RecordedTeacher(name)
  return _http(name, options, api) if kind == "openai" else _t5(name, options)


def _http(model: str, options: TeacherOptions, api: str) -> Teacher:
  try:
    from dss_jax.teachers.http import HttpTeacher, RetryPolicy
  except ImportError as error:
    raise UserError(
      f"--teacher openai:{model}: aiohttp is not installed ({error.name});"
      " pip install 'dss-jax[teacher]'"
    ) from None
  return HttpTeacher(
    model,
    url=options.url,
    key_env=options.key_env,
    api="completion" if api == "completion" else "chat",
    retry_policy=RetryPolicy(timeout_seconds=options.timeout_seconds, attempts=options.attempts),
  )


def _t5(folder: str, options: TeacherOptions) -> Teacher:
  from dss_jax.config.schema import MeshConfig
  from dss_jax.parallel.mesh import make_mesh
  from dss_jax.storage.cache import keep_compiled_programs
  from dss_jax.student.predictor import Predictor
  from dss_jax.student.student import Student
  from dss_jax.teachers.student_teacher import T5Teacher

  keep_compiled_programs()
  student = Student.open(folder)
  mesh = make_mesh(MeshConfig(), options.batch_size)
  predictor = Predictor(student, mesh, batch_size=options.batch_size)
  name = f"t5:{pathlib.Path(folder).name}"
  return T5Teacher(predictor, name, batch_size=options.batch_size)


def _prompt(
  given: str | None,
  task: TaskDefinition | None,
  rows: Callable[[], Iterable[Row]],
  kind: str,
  output: PathLike | None,
) -> Prompt:
  """The prompt given, the task's, or one made from the rows."""
  if given is not None:
    return load_prompt(given)
  if task is not None and task.name in shipped_prompts():
    return load_prompt(task.name)
  if kind == "t5":
    # A student was trained on bare inputs: there is nothing to show it.
    return Prompt(instruction="(none: a student takes the bare input)")
  if output is not None and exists(prompt_path(output)):
    say(f"prompt: {prompt_path(output)}, made by an earlier run; delete it to have it made anew")
    return _with_task(load_prompt(prompt_path(output)), task, kind)
  made = default_prompt(rows())
  if output is not None:
    write_text(prompt_path(output), prompt_to_yaml(made))
    say(
      f"prompt: made from the rows, {len(made.exemplars)} of them as examples;"
      f" written to {prompt_path(output)}, where you can edit it"
    )
  return _with_task(made, task, kind)


def _with_task(prompt: Prompt, task: TaskDefinition | None, kind: str) -> Prompt:
  """Recorded answers have the form that the task's own parser reads, whatever the prompt."""
  if task is None or kind != "recorded":
    return prompt
  return dataclasses.replace(
    prompt, parse=dataclasses.replace(prompt.parse, task=task, labels=None)
  )
