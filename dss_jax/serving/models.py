"""The students of a server, each with the thread that writes its answers."""

import dataclasses
import difflib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from dss_jax.serving.batcher import Batcher
from dss_jax.serving.errors import Refused
from dss_jax.student.questions import Increment, Question

# The name of a student that adds its rationale to each answer, for clients without `explain`.
EXPLAIN_SUFFIX = ":explain"


class Student(Protocol):
  """What a server needs of a student; a Predictor and what is kept with it.

  Attributes:
    kinds: what it was trained to write: "label", "rationale".
    max_output_tokens: of one answer.
  """

  kinds: Sequence[str]
  max_output_tokens: int

  def stream(
    self, questions: Iterable[Question], *, is_cancelled: Callable[[int], bool]
  ) -> Iterator[Increment]:
    """Yields answers as they are written, as batcher.Writer."""
    ...

  def count_tokens(self, text: str) -> int:
    """Returns the number of tokens of an input."""
    ...

  def texts_after(self, before: Sequence[int], ids: Sequence[int]) -> list[str]:
    """Returns the text of each of these tokens, if it came after the tokens `before`."""
    ...

  def drift_of(self, text: str) -> list[str]:
    """Returns why an input is unlike those of the training; [] if it is like them."""
    ...


@dataclasses.dataclass(frozen=True)
class ServedModel:
  """A student under a name.

  Attributes:
    version: in the registry; "" for a folder.
    created: seconds since 1970.
  """

  name: str
  version: str
  created: int
  student: Student
  batcher: Batcher

  @property
  def names(self) -> list[str]:
    """Returns the names that clients may give."""
    explains = "rationale" in self.student.kinds
    return [self.name, *([f"{self.name}{EXPLAIN_SUFFIX}"] if explains else [])]


class Models:
  """The students of a server, by name; a student may be replaced while it is used."""

  def __init__(self, max_waiting: int):
    self._max_waiting = max_waiting
    self._models: dict[str, ServedModel] = {}

  def __iter__(self) -> Iterator[ServedModel]:
    return iter(list(self._models.values()))

  def put(self, name: str, version: str, student: Student, created: int | None = None) -> None:
    """Adds a student; an earlier one of this name answers what it has taken, and ends."""
    batcher = Batcher(student, max_waiting=self._max_waiting, name=f"student {name}")
    earlier = self._models.get(name)
    self._models[name] = ServedModel(
      name, version, int(time.time()) if created is None else created, student, batcher
    )
    if earlier is not None:
      earlier.batcher.close()

  def get(self, name: str) -> tuple[ServedModel, bool]:
    """Returns the student and whether its name asks for rationales, too.

    Raises:
      Refused: no student has this name.
    """
    plain = name.removesuffix(EXPLAIN_SUFFIX)
    model = self._models.get(plain)
    if model is None:
      near = difflib.get_close_matches(plain, self._models, 1)
      mend = f"did you mean {near[0]}?" if near else f"there are {', '.join(self._models)}"
      raise Refused(404, f"the model {name[:100]!r} is not served; {mend}", parameter="model")
    return model, plain != name

  def remove(self, name: str) -> None:
    """Removes a student, if it is there; it answers what it has taken, and ends."""
    model = self._models.pop(name, None)
    if model is not None:
      model.batcher.close()

  def close(self) -> None:
    """Takes no more questions."""
    for model in self:
      model.batcher.close()
