"""An opened student: its configuration, card, vocabulary and weights."""

import contextlib
import dataclasses
import os
import pathlib
from typing import Any

from jax.sharding import Mesh

from dss_jax.config.gin_loader import load_config
from dss_jax.config.schema import RunConfig
from dss_jax.data.vocabularies import Vocabulary, load_vocabulary
from dss_jax.errors import UserError
from dss_jax.model.layer_stacks import to_layout_of
from dss_jax.parallel.sharding import params_shape
from dss_jax.storage.files import PathLike
from dss_jax.student.model_dir import CARD, CHECKPOINTS, CONFIG, holds_run, read_card
from dss_jax.student.registry import student_folder
from dss_jax.train.checkpointing import Checkpoints, has_checkpoint


@dataclasses.dataclass(frozen=True)
class Student:
  """A trained (or half-trained) student on disk."""

  directory: pathlib.Path
  config: RunConfig
  card: dict[str, Any]  # model.json
  vocabulary: Vocabulary

  @classmethod
  def open(cls, model: PathLike, registry: PathLike | None = None) -> "Student":
    """Reads everything but the weights.

    Args:
      model: a student's folder, or NAME, NAME@VERSION or NAME@ALIAS of the registry.
      registry: the registry's folder, if it is not the user's own.

    Raises UserError if there is no such student.
    """
    path = student_folder(model, registry)
    if not holds_run(path):
      raise UserError(
        f"{os.fspath(model)}: holds no {CONFIG}, so it is no student's folder; give the "
        "--model-dir of a training run on this machine"
      )
    config = load_config(RunConfig, [str(path / CONFIG)])
    card = read_card(path / CARD)
    return cls(path, config, card, _own_vocabulary(path, card))

  def params(self, mesh: Mesh, *, scan_layers: bool | None = None) -> Any:
    """Restores the weights of the best checkpoint (else the newest) on the mesh.

    Args:
      scan_layers: the layout of the layers; by default that of training.
    """
    directory = self.directory / CHECKPOINTS
    if not has_checkpoint(directory):
      raise UserError(
        f"{self.directory}: has no checkpoint yet; train it further with the same command"
      )
    with contextlib.closing(Checkpoints(directory, keep_best=True, read_only=True)) as checkpoints:
      step = checkpoints.best_step()
      assert step is not None
      model = self.config.model
      if scan_layers is None or scan_layers == model.scan_layers:
        return checkpoints.restore_params(step, self.params_shape(mesh))
      wanted = dataclasses.replace(model, scan_layers=scan_layers)
      return to_layout_of(
        checkpoints.restore_params(step, self.params_shape(mesh)),
        params_shape(wanted, mesh),
      )

  def params_shape(self, mesh: Mesh) -> Any:
    """Returns the shapes of the weights with their shardings."""
    return params_shape(self.config.model, mesh, self.config.mesh.weights_over_data)


def _own_vocabulary(path: pathlib.Path, card: dict[str, Any]) -> Vocabulary:
  """Loads the vocabulary that a student was trained with, from its copy if it has a file."""
  spec, copy = card["vocabulary"]["spec"], card["vocabulary"]["file"]
  place = spec if copy is None else path / copy
  try:
    vocabulary = load_vocabulary(place)
  except UserError as error:
    raise UserError(
      f"{place}: the student's vocabulary is missing or damaged; restore it from a copy"
    ) from error
  if vocabulary.digest != card["vocabulary"]["digest"]:
    raise UserError(
      f"{place}: this is not the vocabulary that the student was trained with; restore it from "
      "a copy"
    )
  return vocabulary
