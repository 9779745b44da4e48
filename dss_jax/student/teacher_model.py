"""The teacher whose outputs a run trains on: a T5-family model on disk, opened and checked."""

import dataclasses
import hashlib

import numpy as np
from jax.sharding import Mesh

from dss_jax.checkpoints.arrays import lay_out, shapes_of
from dss_jax.config.schema import RunConfig, SignalConfig, T5Config
from dss_jax.data.vocabularies import Vocabulary, load_vocabulary
from dss_jax.errors import UserError
from dss_jax.parallel.sharding import params_shape
from dss_jax.student.initialise import MOST_PADDING_ROWS
from dss_jax.student.open_checkpoint import Weights, open_checkpoint
from dss_jax.student.registration import digest_of
from dss_jax.student.registry import student_folder
from dss_jax.student.student import Student
from dss_jax.train.teacher_network import TeacherNetwork

# The most numbers of a weight that is read for the digest.
_SHORT = 16_384


class TeacherModel:
  """A student of ours, or a T5X or Hugging Face checkpoint, that is opened but not read.

  Attributes:
    path: as it was named.
    config: its architecture (see as_teacher).
    vocabulary: its own.
    digest: of what it is, so that a resumed run notices another one.
  """

  def __init__(self, run: RunConfig, vocabulary: Vocabulary, *, any_vocabulary: bool = False):
    """Opens the teacher.

    Args:
      vocabulary: the run's.
      any_vocabulary: whether its own may be another one.

    Raises UserError if it is no T5-family model, has another vocabulary than the run, or is asked
    for rationales in another way.
    """
    signals = run.signals
    assert signals.model is not None
    self.path = signals.model
    self._weights = signals.weights
    try:
      self._source = open_checkpoint(str(student_folder(signals.model, run.registry)))
    except UserError as error:
      message = str(error).removeprefix("--initial-checkpoint ")
      raise UserError(f"--teacher-model {message}") from error
    source = self._source
    if isinstance(source, Student) and source.config.data.shared_encoder != run.data.shared_encoder:
      is_shared = source.config.data.shared_encoder
      raise UserError(
        f"--teacher-model {self.path}: was trained with{'' if is_shared else 'out'} "
        f"--shared-encoder and the run is with{'out' if is_shared else ''} it, so they are asked "
        "for a rationale in different ways; train both alike"
      )
    self.vocabulary = self._own_vocabulary(signals, vocabulary, any_vocabulary)
    model = source.config.model if isinstance(source, Student) else source.model
    self.config: T5Config = as_teacher(model, run.model)
    self.digest = digest_of(source) if isinstance(source, Student) else _digest_of_weights(source)

  def network(self, mesh: Mesh) -> TeacherNetwork:
    """Returns the network without its weights."""
    return TeacherNetwork(self.config, mesh, self._weights)

  def load(self, network: TeacherNetwork) -> None:
    """Reads the weights onto the network's mesh, each shard separately."""
    if isinstance(self._source, Student):
      network.load(self._source.params(network.mesh))
    else:
      network.load(lay_out(self._source.arrays, params_shape(self.config, network.mesh)))

  def _own_vocabulary(
    self, signals: SignalConfig, vocabulary: Vocabulary, any_vocabulary: bool
  ) -> Vocabulary:
    """Returns the teacher's vocabulary; raises UserError if it is unknown or must not differ."""
    mend = (
      "train the student with the teacher's --vocabulary, or write its next tokens by "
      "`dss annotate --signal logits` and add --kind universal"
    )
    theirs = vocabulary
    if isinstance(self._source, Student):
      theirs = self._source.vocabulary
      rows = None
    else:
      rows = self._source.model.vocab_size or 0
      if signals.vocabulary is not None:
        theirs = load_vocabulary(signals.vocabulary)
    if rows is not None and not 0 <= rows - theirs.size < MOST_PADDING_ROWS:
      raise UserError(
        f"--teacher-model {self.path}: has {rows:,} embedding rows, which the vocabulary "
        f"{theirs.spec} with its {theirs.size:,} ids cannot have; "
        + ("give the --teacher-vocabulary that it was trained with" if any_vocabulary else mend)
      )
    if theirs.digest != vocabulary.digest and not any_vocabulary:
      raise UserError(
        f"--teacher-model {self.path}: its vocabulary is {theirs.spec} (digest "
        f"{theirs.digest[:8]}), and the student's is {vocabulary.spec} "
        f"({vocabulary.digest[:8]}), so their token ids mean other texts; {mend}"
      )
    return theirs


def as_teacher(teacher: T5Config, student: T5Config) -> T5Config:
  """Returns a teacher's architecture as it is run beside a student.

  Without dropout and gradient there is nothing to recompute; activations have the student's dtype.
  """
  return dataclasses.replace(teacher, dropout_rate=0.0, remat="none", dtype=student.dtype)


def _digest_of_weights(weights: Weights) -> str:
  """Returns a digest of the shapes of all weights and the numbers of the short ones.

  Those are the scales of norms and the tables of relative positions, which training changes in
  every step: reading them takes no time, where the whole of a large teacher takes minutes.
  """
  arrays = weights.arrays
  digest = hashlib.sha256(repr((weights.format, sorted(shapes_of(arrays).items()))).encode())
  for name in sorted(arrays):
    if arrays[name].size <= _SHORT:
      digest.update(np.ascontiguousarray(arrays[name].whole()).tobytes())
  return digest.hexdigest()
