"""Initial weights: `--initial-checkpoint`, whose format is detected."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from dss_jax.checkpoints.adafactor_moments import StoredMoments
from dss_jax.checkpoints.adafactor_state import check_moments, with_moments
from dss_jax.checkpoints.arrays import (
  StoredArrays,
  architecture,
  first_difference,
  lay_out,
  model_shapes,
  shapes_of,
)
from dss_jax.checkpoints.folder import CheckpointFolder
from dss_jax.checkpoints.hf_read import CONFIG as HF_CONFIG
from dss_jax.checkpoints.hf_read import PICKLES, WEIGHTS, WEIGHTS_INDEX, read_eos_ids, read_hf
from dss_jax.checkpoints.orbax import (
  STATE,
  is_array_folder,
  read_t5x_orbax,
  read_t5x_orbax_moments,
)
from dss_jax.checkpoints.t5x_read import INDEX, newest_step, read_t5x, read_t5x_moments
from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import RunConfig, T5Config, student_names
from dss_jax.data.vocabularies import Vocabulary
from dss_jax.errors import UserError
from dss_jax.parallel.sharding import params_shape
from dss_jax.student.model_dir import CONFIG
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
_KINDS = (
  "a student's --model-dir, a T5X checkpoint_<step> (native or Orbax) or the folder of a Hugging "
  "Face T5 with safetensors"
)


@dataclasses.dataclass(frozen=True)
class Weights:
  """A checkpoint of another program, opened but not read.

  Attributes:
    format: in words, such as "T5X native".
    model: the architecture, from the arrays' shapes and, of a Hugging Face folder, config.json.
    names_activations: whether `model.mlp_activations` is known, and not only T5's usual one.
    eos_ids: the ids that end a text, if the checkpoint says.
    arrays: the weights by our names.
    moments: opens the optimizer's moments; None for a format without them.
  """

  format: str
  path: str
  model: T5Config
  arrays: StoredArrays
  moments: Callable[[], StoredMoments] | None = None
  names_activations: bool = False
  eos_ids: tuple[int, ...] = ()


class InitialCheckpoint:
  """The weights that a run starts from, checked against its configuration.

  Attributes:
    config: the run's configuration, with the checkpoint's number of embedding rows, unless given,
      and its kind of relative position bias.
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
    self._source = opened
    theirs = opened.config.model if isinstance(opened, Student) else opened.model
    if isinstance(opened, Student):
      self._check_vocabulary(opened, vocabulary)
    else:
      self.notes.append(f"starting from the weights of {opened.path} ({opened.format})")
      self._check_rows(theirs, vocabulary)
      self._check_end_mark(opened.eos_ids, vocabulary)
    self.config = self._settled(config, theirs, vocabulary)
    shapes = model_shapes(theirs) if isinstance(opened, Student) else shapes_of(opened.arrays)
    difference = first_difference(shapes, model_shapes(self.config.model))
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
      if isinstance(self._source, Student):
        return self._source.params(mesh, scan_layers=self.config.model.scan_layers)
      shape = params_shape(self.config.model, mesh, self.config.mesh.weights_over_data)
      return lay_out(self._source.arrays, shape)

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
    return (
      f"--initial-checkpoint {self._path}: its weight {name} is {shape}, but --student "
      f"{self.config.student} needs {needed}; {mend}"
    )


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


def open_checkpoint(path: str) -> Student | Weights:
  """Opens the checkpoint at the path, in any format, without reading the weights.

  Raises UserError if there is none, or if it is damaged, a pickle, or not a T5.
  """
  folder = CheckpointFolder(path)
  if folder.local is not None:
    local = folder.local
    if local.is_file():
      return _open_file(local, path)
    if not local.is_dir():
      raise UserError(f"--initial-checkpoint {path}: no such file or folder; give {_KINDS}")
    # T5X's MODEL_DIR also has a file of that name.
    if (local / CONFIG).is_file() and newest_step(local) is None:
      return Student.open(path)
  if folder.has(INDEX):
    return _t5x("T5X native", path)
  if is_array_folder(folder) or is_array_folder(folder / STATE):
    opener = functools.partial(read_t5x_orbax_moments, path)
    return _weights("T5X Orbax", path, read_t5x_orbax(path), opener)
  if folder.local is not None:
    return _open_folder(folder.local, path)
  if folder.has(HF_CONFIG):
    read_hf(path)  # Raises the error that these are read from local disks only.
  return _t5x("T5X single file", path)


def _open_file(local: pathlib.Path, path: str) -> Weights:
  if local.suffix == ".safetensors" or local.name == HF_CONFIG:
    raise UserError(
      f"--initial-checkpoint {path}: is one file of a Hugging Face folder; give the folder, with "
      "its config.json"
    )
  if local.suffix in PICKLES:
    raise UserError(
      f"--initial-checkpoint {path}: is a pickle, which can run any program when it is read; "
      "convert it to safetensors, and give the folder of those"
    )
  return _t5x("T5X native" if local.name == INDEX else "T5X single file", path)


def _open_folder(local: pathlib.Path, path: str) -> Student | Weights:
  names = {entry.name for entry in local.iterdir()}
  pickles = any(name.endswith(PICKLES) for name in names)
  if names & {HF_CONFIG, WEIGHTS, WEIGHTS_INDEX} or pickles:
    model, arrays = read_hf(path)
    return Weights(
      "Hugging Face", path, model, arrays, names_activations=True, eos_ids=read_eos_ids(path)
    )
  newest = newest_step(local)
  if newest is not None:
    return open_checkpoint(os.fspath(newest))
  raise UserError(f"--initial-checkpoint {path}: is no checkpoint; give {_KINDS}")


def _t5x(kind: str, path: str) -> Weights:
  return _weights(kind, path, read_t5x(path), functools.partial(read_t5x_moments, path))


def _weights(
  kind: str, path: str, arrays: StoredArrays, moments: Callable[[], StoredMoments]
) -> Weights:
  return Weights(kind, path, architecture(shapes_of(arrays), path), arrays, moments)


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
