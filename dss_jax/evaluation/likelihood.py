"""The probability that a student gives to its own answers."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dss_jax.config.schema import LABEL
from dss_jax.data.batches import EvalBatches
from dss_jax.data.packing import aligned_tokens
from dss_jax.model.flops import forward_flops
from dss_jax.student.student import Student
from dss_jax.train.evaluation import evaluate
from dss_jax.train.step import Trainer


@dataclasses.dataclass(frozen=True)
class _Answers:
  """Inputs and answers as tokens: a SequenceStore in memory, of labels alone."""

  inputs: list[np.ndarray]
  targets: list[np.ndarray]

  @property
  def input_lengths(self) -> np.ndarray:
    return _lengths(self.inputs)

  @property
  def target_lengths(self) -> np.ndarray:
    return _lengths(self.targets)

  def input_tokens(self, example: int, kind: int) -> np.ndarray:
    return self.inputs[example]

  def target_tokens(self, example: int, kind: int) -> np.ndarray:
    return self.targets[example]


def answer_probabilities(
  student: Student, trainer: Trainer, params: object, texts: Sequence[str], answers: Sequence[str]
) -> np.ndarray:
  """Computes the probability of each answer to its input as a label, float64 [answers].

  It is the product of its tokens' probabilities, the end token's included, in one teacher-forced
  pass. An answer is tokenised anew: if it was written with other tokens of the same text, the
  probability is that of these.

  Args:
    trainer, params: the student's, on their mesh.
  """
  config, vocabulary = trainer.config, student.vocabulary
  prefix = student.card["prefixes"]["label"]

  def tokens(text: str, most: int) -> np.ndarray:
    return np.array([*vocabulary.encode(text)[: most - 1], vocabulary.eos_id], np.int32)

  store = _Answers(
    [tokens(prefix + text, config.data.max_input_tokens) for text in texts],
    [tokens(answer, config.data.max_output_tokens) for answer in answers],
  )
  batches = EvalBatches(
    store,
    batch_size=config.batch_size,
    kinds=(LABEL,),
    costs=forward_flops(config.model).of_rows,
    row_multiple=trainer.mesh.shape["data"],
    length_multiple=aligned_tokens(config.model.dtype),
  )
  return np.exp(-evaluate(trainer, params, batches).sequences["label"].loss)


def _lengths(tokens: list[np.ndarray]) -> np.ndarray:
  """Returns [examples, 2], 0 for the rationale."""
  lengths = np.zeros((len(tokens), 2), np.int64)
  lengths[:, LABEL] = [len(each) for each in tokens]
  return lengths
