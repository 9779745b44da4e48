"""Initial weights: `--initial-checkpoint`, whose format is detected."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import jax

from dss_jax.checkpoints.adafactor_moments import StoredMoments
from dss_jax.checkpoints.adafactor_state import check_moments, with_moments
from dss_jax.checkpoints.arrays import (
  first_difference,
  lay_out,
  model_shapes,
  shapes_of,
)
from dss_jax.checkpoints.hf_read import CONFIG as HF_CONFIG
from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import RunConfig, T5Config, student_names
from dss_jax.data.vocabularies import Vocabulary
from dss_jax.errors import UserError
from dss_jax.model.layer_stacks import chosen_layers
from dss_jax.parallel.sharding import params_shape
from dss_jax.student.export import best_weights
from dss_jax.student.layer_choice import LayerChoice, choose_layers, depths, parse_layers
from dss_jax.student.model_dir import CONFIG
from dss_jax.student.open_checkpoint import Weights, open_checkpoint
from dss_jax.student.student import Student
from dss_jax.train.step import Trainer, TrainState

# The name of a student whose architecture is taken from a checkpoint and is not a shipped one.
FROM_CHECKPOINT = "from-checkpoint"
_ARCHITECTURE = (
  "emb_dim",
  "num_heads",
  "head_dim",
  "mlp_dim",
  "num_encoder_layers",
  "num_decoder_layers",
  "mlp_activations",
  "logits_via_embedding",
  "scale_tied_logits",
)
_EMBEDDING = "token_embedder.embedding"
# Public checkpoints round the number of rows up to a multiple of 128, some of 1,024.
MOST_PADDING_ROWS = 1024


class InitialCheckpoint:
  """The weights that a run starts from, checked against its configuration.

  Attributes:
    config: the run's configuration, with the checkpoint's number of embedding rows, unless given,
      and its kind of relative position bias.
    layers: the checkpoint's layers that are taken, for each stack; None for all of them.
    notes: sentences for the user.
  """

  def __init__(self, config: RunConfig, vocabulary: Vocabulary):
    """Opens and checks the checkpoint, without reading the weights.

    Raises UserError if it is not a checkpoint, is damaged, or has another vocabulary or shapes
    than this run; the first differing weight is named with both shapes.
    """
    assert config.initial_checkpoint is not None
    self._path = config.initial_checkpoint
    self.notes: list[str] = []
    with _named():
      opened = open_checkpoint(self._path)
      self._arrays = best_weights(opened)[1] if isinstance(opened, Student) else opened.arrays
    self._source = opened
    theirs = opened.config.model if isinstance(opened, Student) else opened.model
    if isinstance(opened, Student):
      self._check_vocabulary(opened, vocabulary)
    else:
      self.notes.append(f"starting from the weights of {opened.path} ({opened.format})")
      self._check_rows(theirs, vocabulary)
      self._check_end_mark(opened.eos_ids, vocabulary)
    self.config = self._settled(config, theirs, vocabulary)
    self.layers: LayerChoice | None = None
    if config.initial_layers is not None:
      self.layers = choose_layers(config.initial_layers, theirs, self.config.model)
      self._arrays = chosen_layers(self._arrays, self.layers)
      self.notes.append(_taken_layers(self.layers, theirs))
    difference = first_difference(shapes_of(self._arrays), model_shapes(self.config.model))
    if difference:
      raise UserError(self._mismatch(difference, theirs))
    names_activations = isinstance(opened, Student) or opened.names_activations
    if names_activations and theirs.mlp_activations != self.config.model.mlp_activations:
      raise UserError(
        f"--initial-checkpoint {self._path}: its feed-forward layers are "
        f"{theirs.mlp_activations}, but --student {config.student} has "
        f"{self.config.model.mlp_activations}; set T5Config.mlp_activations to the checkpoint's"
      )
    if not names_activations and config.student == FROM_CHECKPOINT:
      self.notes.append(
        f"its activations are taken to be {theirs.mlp_activations}, T5's usual ones, which its "
        "arrays do not say; set T5Config.mlp_activations if they are others"
      )
    self._moments = self._opened_moments() if config.initial_optimizer_state else None

  def state(self, trainer: Trainer) -> TrainState:
    """Returns the state at step 0 with the weights and, if requested, the moments.

    Raises UserError if a part cannot be read, or if the moments do not fit this run's Adafactor.
    """
    if self._moments is not None:
      if trainer.state_shape.projections:
        raise UserError(
          f"--initial-optimizer-state: the checkpoint {self._path} has no moments of the "
          "projections that --kind feature trains between networks of different widths; leave "
          "it out"
        )
      with _named():
        check_moments(trainer.state_shape.opt_state, self._moments, self._path)
    state = trainer.state_from_params(self.params(trainer.mesh))
    if self._moments is None:
      return state
    with _named():
      return dataclasses.replace(state, opt_state=with_moments(state.opt_state, self._moments))

  def params(self, mesh: jax.sharding.Mesh) -> Any:
    """Reads the weights, each shard separately.

    Raises UserError if a part cannot be read.
    """
    with _named():
      shape = params_shape(self.config.model, mesh, self.config.mesh.weights_over_data)
      return lay_out(self._arrays, shape)

  def _opened_moments(self) -> StoredMoments:
    """Opens the moments; raises UserError if there are none, or if the run has no Adafactor."""
    where = f"--initial-checkpoint {self._path}"
    if self.config.optimizer.name != "adafactor":
      raise UserError(
        f"--initial-optimizer-state: T5X's checkpoints have moments of Adafactor, and this run's "
        f"optimizer is {self.config.optimizer.name}; set OptimizerConfig.name = 'adafactor', or "
        "leave it out"
      )
    if isinstance(self._source, Student):
      raise UserError(
        f"{where}: is a student, whose training goes on in its own --model-dir; leave out "
        "--initial-optimizer-state to start from its weights"
      )
    if self._source.moments is None:
      raise UserError(
        f"{where}: is a {self._source.format} checkpoint, which holds the weights alone; leave "
        "out --initial-optimizer-state"
      )
    with _named():
      moments = self._source.moments()
    self.notes.append(
      f"Adafactor goes on from the checkpoint's moments of {moments.step:,} updates"
      + ("; its momentum is left behind" if moments.has_momentum else "")
    )
    return moments

  def _check_vocabulary(self, student: Student, vocabulary: Vocabulary) -> None:
    if student.vocabulary.digest != vocabulary.digest:
      raise UserError(
        f"--initial-checkpoint {self._path}: was trained with the vocabulary "
        f"{student.card['vocabulary']['spec']}, not {vocabulary.spec}; give the same --vocabulary"
      )

  def _check_rows(self, theirs: T5Config, vocabulary: Vocabulary) -> None:
    rows = theirs.vocab_size or 0
    if not 0 <= rows - vocabulary.size < MOST_PADDING_ROWS:
      raise UserError(
        f"--initial-checkpoint {self._path}: its weight {_EMBEDDING} is ({rows}, "
        f"{theirs.emb_dim}), but the vocabulary {vocabulary.spec} has {vocabulary.size} ids and "
        f"needs ({vocabulary.size}, {theirs.emb_dim}), or a few padding rows more; give the "
        "--vocabulary that the checkpoint was trained with"
      )
    if rows > vocabulary.size:
      self.notes.append(
        f"the embedding has {rows:,} rows for the vocabulary's {vocabulary.size:,} ids; the last "
        f"{rows - vocabulary.size:,} are padding and are kept"
      )

  def _check_end_mark(self, eos_ids: tuple[int, ...], vocabulary: Vocabulary) -> None:
    if eos_ids and vocabulary.eos_id not in eos_ids:
      raise UserError(
        f"--initial-checkpoint {self._path}: its {HF_CONFIG} ends texts with id "
        f"{', '.join(map(str, eos_ids))} (eos_token_id), but the vocabulary {vocabulary.spec} with "
        f"id {vocabulary.eos_id}; give the --vocabulary that the checkpoint was trained with"
      )

  def _settled(self, config: RunConfig, theirs: T5Config, vocabulary: Vocabulary) -> RunConfig:
    rows = theirs.vocab_size if config.model.vocab_size is None else config.model.vocab_size
    model = dataclasses.replace(
      config.model, vocab_size=rows, shared_relpos_bias=theirs.shared_relpos_bias
    )
    return dataclasses.replace(config, model=model)

  def _mismatch(self, difference: tuple[str, str, str], theirs: T5Config) -> str:
    name, shape, needed = difference
    size = matching_student(theirs)
    mend = "leave out --student to have the student built as the checkpoint is"
    if size is not None and size != self.config.student:
      mend = f"it has the sizes of --student {size}"
    if self._has_layers_to_choose(theirs):
      mend = (
        f"to start from some of its {theirs.num_encoder_layers} encoder and "
        f"{theirs.num_decoder_layers} decoder layers, give --initial-layers uniform, first, last "
        f"or their numbers; or {mend}"
      )
    return (
      f"--initial-checkpoint {self._path}: its weight {name} is {shape}, but --student "
      f"{self.config.student} needs {needed}; {mend}"
    )

  def _has_layers_to_choose(self, theirs: T5Config) -> bool:
    """Returns whether the student differs from the checkpoint in having fewer layers alone."""
    if self.layers is not None:
      return False
    try:
      layers = choose_layers("uniform", theirs, self.config.model)
    except UserError:
      return False
    shapes = shapes_of(chosen_layers(self._arrays, layers))
    return first_difference(shapes, model_shapes(self.config.model)) is None


def check_initial_settings(config: RunConfig) -> None:
  """Raises UserError if a setting of the initial checkpoint has none, or contradicts another."""
  layers = config.initial_layers
  if layers is not None:
    parse_layers(layers)
  if config.initial_checkpoint is None:
    for flag, given in (
      ("--initial-optimizer-state", config.initial_optimizer_state),
      ("--initial-layers", layers is not None),
    ):
      if given:
        raise UserError(
          f"{flag}: there is no checkpoint to take it from; give --initial-checkpoint, too"
        )
  if layers is not None and config.initial_optimizer_state:
    raise UserError(
      f"--initial-optimizer-state: the moments are those of the whole checkpoint, and "
      f"--initial-layers {layers} takes some of its layers; leave out one of the two"
    )


def _taken_layers(layers: LayerChoice, theirs: T5Config) -> str:
  parts = (
    f"{', '.join(map(str, numbers))} of the {stack}'s {depths(theirs)[stack]}"
    for stack, numbers in layers.items()
  )
  return f"taking its layers {' and '.join(parts)}, counted from 0"


@contextlib.contextmanager
def _named() -> Iterator[None]:
  """Makes errors about a checkpoint begin with --initial-checkpoint."""
  flag = "--initial-checkpoint "
  try:
    yield
  except UserError as error:
    raise UserError(f"{flag}{str(error).removeprefix(flag)}") from error


def resumed(config: RunConfig, stored: RunConfig) -> RunConfig:
  """Returns the configuration with the settings that the run took from its initial checkpoint."""
  rows = config.model.vocab_size
  model = dataclasses.replace(
    config.model,
    vocab_size=stored.model.vocab_size if rows is None else rows,
    shared_relpos_bias=stored.model.shared_relpos_bias,
  )
  return dataclasses.replace(config, model=model)


def student_of(path: str, model_dir: str | None = None) -> tuple[str, list[Binding]]:
  """Returns the student that a checkpoint was trained as, by name, and the bindings it needs.

  A shipped student needs none. Any other architecture is called FROM_CHECKPOINT, and the bindings
  are its T5Config. Where model_dir has a run already, its student is returned, and the
  checkpoint is not opened.

  Raises:
    UserError: as open_checkpoint does.
  """
  if model_dir is not None and os.path.isfile(os.path.join(model_dir, CONFIG)):
    opened: Student | Weights = Student.open(model_dir)
  else:
    with _named():
      opened = open_checkpoint(path)
  if isinstance(opened, Student):
    if opened.config.student in student_names():
      return opened.config.student, []
    return FROM_CHECKPOINT, _bindings(opened.config.model)
  shipped = matching_student(opened.model)
  if shipped is not None:
    return shipped, []
  return FROM_CHECKPOINT, _bindings(opened.model)


def _bindings(model: T5Config) -> list[Binding]:
  """Returns the bindings of an architecture, without what InitialCheckpoint sets."""
  values = {f"T5Config.{name}": getattr(model, name) for name in _ARCHITECTURE}
  values["RunConfig.student"] = FROM_CHECKPOINT
  return [Binding(name, value, "--initial-checkpoint") for name, value in values.items()]


def matching_student(model: T5Config) -> str | None:
  """Returns the shipped student of this architecture; of several, the one with the shortest name.

  Students that differ only in their vocabulary are distinguished by the embedding rows.
  """
  fitting = []
  for name in student_names():
    run = load_config(
      RunConfig,
      ["runs/distill.gin", f"models/{name}.gin"],
      [Binding("MODEL_DIR", "-", "--initial-checkpoint")],
    )
    if _sizes(run.model) == _sizes(model):
      rows_differ = _published_rows(run.data.vocabulary) != model.vocab_size
      fitting.append((rows_differ, len(name), name))
  return min(fitting)[2] if fitting else None


def _sizes(model: T5Config) -> tuple[Any, ...]:
  return tuple(getattr(model, name) for name in _ARCHITECTURE)


def _published_rows(vocabulary: str | None) -> int:
  if vocabulary == "bytes":
    return 384
  return 250_112 if vocabulary and "250000" in vocabulary else 32_128
