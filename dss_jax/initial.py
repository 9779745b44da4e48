"""Weights to start from: `--initial-checkpoint`."""

import functools
import pathlib
from typing import Any

import jax
from flax import linen as nn

from dss_jax.config import RunConfig
from dss_jax.data.vocabularies import Vocabulary
from dss_jax.errors import UserError
from dss_jax.model.t5 import init_params
from dss_jax.student import CONFIG, Student


class InitialCheckpoint:
  """The student in another run's folder, to go on from its best weights."""

  def __init__(self, config: RunConfig, vocabulary: Vocabulary):
    """Opens and checks it, without reading the weights.

    Raises UserError where it is no student, or where its vocabulary or any weight's shape is
    not this run's; the first differing weight is named with both shapes.
    """
    assert config.initial_checkpoint is not None
    path = pathlib.Path(config.initial_checkpoint)
    if not (path / CONFIG).is_file():
      raise UserError(
        f"--initial-checkpoint {path}: is no student's folder (it holds no {CONFIG}); give the "
        "--model-dir of an earlier run"
      )
    self._student = Student.open(path)
    if self._student.vocabulary.digest != vocabulary.digest:
      raise UserError(
        f"--initial-checkpoint {path}: was trained with the vocabulary "
        f"{self._student.card['vocabulary']['spec']}, not {vocabulary.spec}; give the same "
        "--vocabulary"
      )
    theirs, ours = _shapes(self._student.config), _shapes(config)
    for name in sorted({*theirs, *ours}):
      if theirs.get(name) != ours.get(name):
        raise UserError(
          f"--initial-checkpoint {path}: its weight {name} is {theirs.get(name, 'absent')}, but "
          f"--student {config.student} needs {ours.get(name, 'no such weight')}; choose the "
          "student that the checkpoint was trained as"
        )

  def params(self, mesh: jax.sharding.Mesh) -> Any:
    """The weights, laid out on the mesh."""
    return self._student.params(mesh)


def _shapes(config: RunConfig) -> dict[str, tuple[int, ...]]:
  boxed = jax.eval_shape(functools.partial(init_params, config.model), jax.random.key(0))
  return {
    ".".join(key.key for key in path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(nn.meta.unbox(boxed))
  }
