"""Task files: how a published data set becomes rows, labels and a metric.

A file of `tasks/`, or a user's own file, defines `TASK = TaskDefinition(...)`. This module
has that class, all else that such a file imports, and loads such files; `task_rows` reads the
data that they describe.
"""

import dataclasses
import importlib.util
import inspect
import math
import os
import pathlib
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dss_jax.config.schema import shipped_folder
from dss_jax.data.records import Row
from dss_jax.data.texts import is_blank
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

  def __post_init__(self):
    for name, kinds in (
      ("rows", str),
      ("answers", str | None),
      ("start", int),
      ("stop", int | None),
    ):
      value = getattr(self, name)
      if not isinstance(value, kinds):
        raise ValueError(f"Split.{name} {value!r} must be {getattr(kinds, '__name__', kinds)}")
    if not callable(self.keep):
      raise ValueError(f"Split.keep {self.keep!r} must be a function of an index")

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
    to_row: a published row (one JSON object) -> {"input_text", "output_text"?, "rationale"?},
      or None for a row to leave out.
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
    if not isinstance(self.name, str) or not _TASK_NAME.fullmatch(self.name):
      raise ValueError(f"name {self.name!r} must be letters, digits, '_' and '.'")
    for name in ("to_row", "parse_answer", "same_label", "metric"):
      if not callable(getattr(self, name)):
        raise ValueError(f"{name} {getattr(self, name)!r} must be a function")
    unknown = sorted(set(self.splits) - {"train", "validation", "test"})
    if unknown or not self.splits:
      raise ValueError(
        f'splits {sorted(self.splits)} must be some of "train", "validation", "test"'
      )
    if not all(isinstance(split, Split) for split in self.splits.values()):
      raise ValueError("each of splits must be a Split, such as Split('train.jsonl')")


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Returns {"accuracy"}: the percentage of predictions that equal their target exactly."""
  return {"accuracy": percent(sum(map(str.__eq__, targets, predictions)), len(targets))}


def percent(part: int, whole: int) -> float:
  """Returns 100 part / whole, or 0 if the whole is 0."""
  return 100.0 * part / max(whole, 1)


def is_no_label(value: Any) -> bool:
  """Returns whether a published label says that there is none.

  Published data sets write -1 (SNLI on the Hugging Face Hub), "-" (SNLI's own files), null, NaN
  or an empty text.
  """
  if isinstance(value, str):
    return is_blank(value) or value.strip() in ("-", "-1")
  if isinstance(value, float) and math.isnan(value):
    return True
  return value is None or (value == -1 and not isinstance(value, bool))


def load_task(name_or_path: str) -> TaskDefinition:
  """Returns the task of a shipped name ("svamp"), or of the path of a file that defines `TASK`.

  Text with a path separator, or ending in ".py", is a path.

  Raises:
    UserError: there is no such task or file, its import fails, or it defines no TASK.
  """
  if name_or_path.endswith(".py") or "/" in name_or_path or "\\" in name_or_path:
    path = pathlib.Path(os.path.expanduser(name_or_path))
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


def failure_of(function: Callable, error: BaseException) -> str:
  """Returns what a function of a task file raised, and where: `KeyError: 'q', in mine.py:12`."""
  code = _code_of(function)
  message = " ".join(str(error).split())[:200]
  what = f"{type(error).__name__}: {message}" if message else type(error).__name__
  if code is None:
    return what
  return f"{what}, in {code.co_filename}{_line_in(pathlib.Path(code.co_filename), error)}"


def place_of(function: Callable) -> str:
  """Returns the file and line of a function of a task file, or its name if it has none."""
  code = _code_of(function)
  return repr(function) if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def _code_of(function: Callable) -> types.CodeType | None:
  function = inspect.unwrap(getattr(function, "func", function))
  called = function if hasattr(function, "__code__") else vars(type(function)).get("__call__")
  return getattr(called, "__code__", None)


def _line_in(path: pathlib.Path, error: BaseException) -> str:
  """Returns ":LINE" of the last line of `path` in the traceback, or ""."""
  if isinstance(error, SyntaxError) and error.filename == str(path.absolute()):
    return f":{error.lineno}"
  line = ""
  trace = error.__traceback__
  while trace is not None:
    if pathlib.Path(trace.tb_frame.f_code.co_filename) == path.absolute():
      line = f":{trace.tb_lineno}"
    trace = trace.tb_next
  return line
