"""A trained student as a server uses it: loaded, warmed up, and asked through a Predictor."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import jax

from dss_jax.config.schema import DecodingConfig, WeightType
from dss_jax.student.drift import DriftDetector
from dss_jax.student.predictor import Predictor
from dss_jax.student.questions import Increment, Question
from dss_jax.student.student import Student


class ServedStudent:
  """See models.Student."""

  def __init__(
    self, student: Student, mesh: jax.sharding.Mesh, *, slots: int, weights: WeightType = "float32"
  ):
    """Loads the weights.

    Args:
      slots: answers written at a time, a multiple of the mesh's data axis.
    """
    decoding = DecodingConfig(weights=weights)
    self._predictor = Predictor(student, mesh, batch_size=slots, decoding=decoding)
    self._vocabulary = student.vocabulary
    self._drift = DriftDetector.of(student)
    alpha = student.config.loss.alpha
    trained = {"label": alpha > 0, "rationale": alpha < 1}
    self.kinds: Sequence[str] = tuple(kind for kind, is_trained in trained.items() if is_trained)
    self.max_output_tokens = student.config.data.max_output_tokens

  def warm_up(self, text: str) -> None:
    """Compiles the programs that an input of this length needs."""
    for _ in self.stream(iter([Question(text, kind) for kind in self.kinds])):
      pass

  def stream(
    self,
    questions: Iterable[Question],
    *,
    is_cancelled: Callable[[int], bool] = lambda number: False,
  ) -> Iterator[Increment]:
    return self._predictor.stream(questions, is_cancelled=is_cancelled)

  def count_tokens(self, text: str) -> int:
    return len(self._vocabulary.encode(text))

  def texts_after(self, before: Sequence[int], ids: Sequence[int]) -> list[str]:
    return self._vocabulary.texts_after(before, ids)

  def drift_of(self, text: str) -> list[str]:
    return [] if self._drift is None else self._drift.drift_of(text)
