"""Opening a checkpoint that a student may start from, in any format, which is detected."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable

from dss_jax.checkpoints.adafactor_moments import StoredMoments
from dss_jax.checkpoints.arrays import StoredArrays, architecture, shapes_of
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
from dss_jax.config.schema import T5Config
from dss_jax.errors import UserError
from dss_jax.student.model_dir import CONFIG
from dss_jax.student.student import Student

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
