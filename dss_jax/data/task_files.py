"""Task files: how a published data set becomes rows, labels and a metric.

A file of `tasks/`, or a user's own file, defines `TASK = TaskDefinition(...)`. This module
has that class and loads such files; `task_rows` reads the data that they describe.
"""

import dataclasses
import importlib.util
import pathlib
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dss_jax.config.schema import shipped_folder
from dss_jax.data.records import Row
from dss_jax.errors import UserError

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]

_TASK_NAME = re.compile(r"[A-Za-z0-9_.]+")


class UnparsableAnswer(Exception):
  """A teacher's text is not a rationale followed by an answer; the message says why."""


class Answer(NamedTuple):
  """A teacher's parsed answer.

  Attributes:
    rationale: the reasoning, without the sentence that gives the answer.
    label: the answer, or None if it is not a single label ("either (a) pond or (b) lake"):
      the rationale is then used without a label.
  """

  rationale: str
  label: str | None


@dataclasses.dataclass(frozen=True)
class Split:
  """The rows of one split: a file, and a selection of its rows (counted from 0).

  Attributes:
    rows: a JSONL file under the data directory.
    answers: a JSONL file of {"index", "llm_output"}, the teacher's text for row `index`
      of `rows` (counted over the whole file); None if no teacher's text is recorded.
    start, stop: the first row, and the one after the last; None is the end of the file.
    keep: a predicate on the index, to select among them.
  """

  rows: str
  answers: str | None = None
  start: int = 0
  stop: int | None = None
  keep: Callable[[int], bool] = lambda index: True

  def has(self, index: int) -> bool:
    """Returns whether row `index` of the file belongs to this split."""
    return self.start <= index and (self.stop is None or index < self.stop) and self.keep(index)


@dataclasses.dataclass(frozen=True)
class TaskDefinition:
  """One data set as a task.

  Attributes:
    name: letters, digits, `_` and `.`; SeqIO's tasks are named after it.
    splits: "train", "validation" and "test", or those of them that exist. Checkpoints are
      chosen on "validation", so it must not have rows of "test".
    to_row: a published row (one JSON object) -> {"input_text", "output_text"?, "rationale"?}.
    parse_answer: a teacher's text -> Answer; raises UnparsableAnswer.
    same_label: whether two labels (the teacher's, gold) mean the same.
    metric: (targets, predictions) -> {name: figure}, a SeqIO metric_fn.
  """

  name: str
  splits: Mapping[str, Split]
  to_row: Callable[[dict], Row]
  parse_answer: Callable[[str], Answer]
  same_label: Callable[[str, str], bool]
  metric: Metric

  def __post_init__(self):
    if not _TASK_NAME.fullmatch(self.name):
      raise ValueError(f"name {self.name!r} must be letters, digits, '_' and '.'")
    unknown = sorted(set(self.splits) - {"train", "validation", "test"})
    if unknown or not self.splits:
      raise ValueError(
        f'splits {sorted(self.splits)} must be some of "train", "validation", "test"'
      )


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Returns {"accuracy"}: the percentage of predictions that equal their target exactly."""
  return {"accuracy": percent(sum(map(str.__eq__, targets, predictions)), len(targets))}


def percent(part: int, whole: int) -> float:
  """Returns 100 part / whole, or 0 if the whole is 0."""
  return 100.0 * part / max(whole, 1)


def load_task(name_or_path: str) -> TaskDefinition:
  """Returns the task of a shipped name ("svamp"), or of the path of a file that defines `TASK`.

  Text with a path separator, or ending in ".py", is a path.

  Raises:
    UserError: there is no such task or file, its import fails, or it defines no TASK.
  """
  if name_or_path.endswith(".py") or "/" in name_or_path or "\\" in name_or_path:
    path = pathlib.Path(name_or_path).expanduser()
    if not path.is_file():
      raise UserError(
        f"{name_or_path}: there is no such task file; give the path of a Python file that"
        f" defines TASK, or one of the shipped tasks: {', '.join(shipped_tasks())}"
      )
  else:
    shipped = shipped_tasks()
    if name_or_path not in shipped:
      raise UserError(
        f"task {name_or_path!r} does not exist; give one of {', '.join(shipped)},"
        " or the path of your own task file (ending in .py)"
      )
    path = shipped[name_or_path]
  task = getattr(_import_file(path), "TASK", None)
  if not isinstance(task, TaskDefinition):
    found = "defines no TASK" if task is None else f"has a TASK of type {type(task).__name__}"
    raise UserError(
      f"{path}: the task file {found}; set TASK = TaskDefinition(...)"
      " (from dss_jax.data.task_files)"
    )
  return task


def shipped_tasks() -> dict[str, pathlib.Path]:
  """Returns the files of the tasks that come with the package, by name."""
  files = sorted(shipped_folder("tasks").glob("*.py"))
  return {path.stem: path for path in files if path.stem != "__init__"}


def _import_file(path: pathlib.Path) -> types.ModuleType:
  """Imports a file under a name that no other module has."""
  name = f"_dss_jax_task_{path.stem}"
  spec = importlib.util.spec_from_file_location(name, path)
  if spec is None or spec.loader is None:
    raise UserError(f"{path}: a task file must be Python source; rename it to end in .py")
  module = importlib.util.module_from_spec(spec)
  # Dataclasses look up their module in sys.modules while it is imported.
  sys.modules[name] = module
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:
    del sys.modules[name]
    reason = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    raise UserError(
      f"{path}{_line_in(path, error)}: importing the task file raised"
      f" {type(error).__name__}: {reason}; correct the file"
    ) from error
  return module


def _line_in(path: pathlib.Path, error: BaseException) -> str:
  """Returns ":LINE" of the last line of `path` in the traceback, or ""."""
  if isinstance(error, SyntaxError):
    return f":{error.lineno}"
  line = ""
  trace = error.__traceback__
  while trace is not None:
    if pathlib.Path(trace.tb_frame.f_code.co_filename) == path.absolute():
      line = f":{trace.tb_lineno}"
    trace = trace.tb_next
  return line
