"""What the data report says of a data set that somebody wants to train on."""

import collections
import dataclasses
import os
import threading
from collections.abc import Callable, Hashable

from dss_jax.config.schema import DataConfig
from dss_jax.data.records import ProblemTally, RowProblem, empty_file_problem, good_rows
from dss_jax.data.report.build import report_on_rows
from dss_jax.data.report.figures import DatasetReport
from dss_jax.data.vocabularies import Vocabulary, load_vocabulary
from dss_jax.errors import UserError
from dss_jax.storage.files import is_url

_REMEMBERED = 16


@dataclasses.dataclass(frozen=True)
class Source:
  """A file of rows.

  Attributes:
    title: what it is called in the report; of an upload, the name that it had.
  """

  path: str
  title: str


@dataclasses.dataclass(frozen=True)
class Examination:
  """What was found in a data set.

  Attributes:
    report: None for a file with bad lines, or without rows.
    problems: the first bad lines.
    total: the number of bad lines.
    failure: why a file could not be read at all, or has no rows; "" if it could.
    counts_tokens: whether lengths are in tokens of the student, not in characters.
  """

  report: DatasetReport | None
  problems: tuple[RowProblem, ...] = ()
  total: int = 0
  failure: str = ""
  counts_tokens: bool = False

  @property
  def is_good(self) -> bool:
    return self.report is not None


class Examiner:
  """Examines data sets, and remembers the last of them while their files stay the same."""

  def __init__(self) -> None:
    self._known: collections.OrderedDict[Hashable, Examination] = collections.OrderedDict()
    self._lock = threading.Lock()

  def examine(self, train: Source, evaluation: Source | None, data: DataConfig) -> Examination:
    """Returns what is in the files.

    Args:
      data: says how a run would read them: its lengths and its vocabulary.
    """
    sources = [each for each in (train, evaluation) if each is not None]
    key = (tuple(_stamp(each) for each in sources), repr(data))
    if any(_stamp(each) is None for each in sources):
      return _examine(train, evaluation, data)
    return self._remember(key, lambda: _examine(train, evaluation, data))

  def _remember(self, key: Hashable, make: Callable[[], Examination]) -> Examination:
    with self._lock:
      if key in self._known:
        self._known.move_to_end(key)
        return self._known[key]
    made = make()
    with self._lock:
      self._known[key] = made
      while len(self._known) > _REMEMBERED:
        self._known.popitem(last=False)
    return made


def _stamp(source: Source) -> Hashable | None:
  """Returns what changes with a local file; None where nothing says so."""
  if is_url(source.path):
    return None
  try:
    status = os.stat(source.path)
  except OSError:
    return None
  return source.path, source.title, status.st_ino, status.st_size, status.st_mtime_ns


def _examine(train: Source, evaluation: Source | None, data: DataConfig) -> Examination:
  problems = ProblemTally()
  vocabulary = _local_vocabulary(data.vocabulary)
  try:
    report = report_on_rows(
      good_rows(train.path, problems, data.labels_as_text),
      name=train.title,
      max_input_tokens=data.max_input_tokens,
      max_output_tokens=data.max_output_tokens,
      eval_rows=(
        None if evaluation is None else good_rows(evaluation.path, problems, data.labels_as_text)
      ),
      eval_name="" if evaluation is None else evaluation.title,
      vocabulary=vocabulary,
    )
  except UserError as error:
    return Examination(None, failure=_named(str(error), train, evaluation))
  if problems.total:
    first = tuple(
      each._replace(path=_named(each.path, train, evaluation)) for each in problems.first
    )
    return Examination(None, first, problems.total)
  for split in (report.train, report.evaluation):
    if split is not None and not split.rows:
      return Examination(None, failure=empty_file_problem(split.name))
  return Examination(report, counts_tokens=vocabulary is not None)


def _named(text: str, *sources: Source | None) -> str:
  """Returns a text with the titles of files for their paths."""
  for source in sources:
    if source is not None:
      text = text.replace(source.path, source.title)
  return text


def _local_vocabulary(spec: str | None) -> Vocabulary | None:
  """Returns a vocabulary that is there; one that has to be fetched would have a page wait."""
  if spec is None or is_url(spec):
    return None
  try:
    return load_vocabulary(spec)
  except UserError:
    return None
