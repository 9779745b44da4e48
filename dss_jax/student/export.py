"""Export of a student to other programs' formats: `dss export`."""

import contextlib
import os
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from dss_jax.checkpoints.arrays import (
  StoredArray,
  StoredArrays,
  first_difference,
  model_shapes,
  shapes_of,
)
from dss_jax.checkpoints.folder import CheckpointFolder
from dss_jax.checkpoints.hf_write import write_hf
from dss_jax.checkpoints.orbax import read_arrays
from dss_jax.checkpoints.t5x_write import write_t5x, write_t5x_orbax
from dss_jax.config.schema import T5Config
from dss_jax.errors import UserError
from dss_jax.model.layer_stacks import unstacked
from dss_jax.storage.atomic import copy_file, publishing, writing
from dss_jax.storage.files import exists, is_dir, join, list_folder
from dss_jax.student.hf_folder import write_model_card, write_tokenizer
from dss_jax.student.input_profile import INPUTS
from dss_jax.student.model_dir import CHECKPOINTS
from dss_jax.student.student import Student
from dss_jax.train.checkpointing import Checkpoints, has_checkpoint

Format = Literal["t5x", "t5x-orbax", "hf"]


def export_student(
  model: str | os.PathLike[str],
  output: str | os.PathLike[str],
  format: Format,
  *,
  dtype: Literal["float32", "bfloat16"] = "float32",
  registry: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
  """Writes a student's best weights, and its vocabulary, for another program to load.

  The weights are copied from disk to disk a part at a time: no accelerator is needed, and no more
  memory than the largest array. The folder appears only when complete.

  Args:
    model, registry: as Student.open takes them.
    output: a new or empty folder. T5X's formats put `checkpoint_<step>` into it.
    dtype: of the weights written; a student's own are float32.

  Returns:
    What was written: `output` (the folder to load), `format`, `dtype`, `step`, `weights` (their
    number).

  Raises:
    UserError: there is no such student, the output is not empty or cannot be written, or the
      format cannot express the student.
  """
  student = Student.open(model, registry)
  step, arrays = best_weights(student)
  kind = np.dtype(jnp.dtype(dtype))
  target = _empty_target(output)
  loadable = target
  with writing(target), publishing(target) as part:
    if format == "hf":
      # First, since it may refuse the vocabulary.
      write_tokenizer(student.vocabulary, part)
      write_hf(
        arrays,
        student.config.model,
        part,
        dtype=kind,
        eos_id=student.vocabulary.eos_id,
        max_new_tokens=student.card["longest_target_tokens"]["label"],
      )
      write_model_card(student, part, step=step, dtype=dtype)
    else:
      _check_t5x(student.config.model)
      write = write_t5x if format == "t5x" else write_t5x_orbax
      loadable = join(target, write(arrays, part, step=step, dtype=kind).name)
      student.vocabulary.save_copy(part)
    if (student.directory / INPUTS).is_file():
      copy_file(student.directory / INPUTS, part / INPUTS)
  weights = sum(array.size for array in arrays.values())
  return {
    "output": loadable,
    "format": format,
    "dtype": dtype,
    "step": step,
    "weights": weights,
  }


def _check_t5x(model: T5Config) -> None:
  if model.logits_via_embedding and not model.scale_tied_logits:
    raise UserError(
      "--format t5x: T5X scales tied logits by 1/sqrt(emb_dim), and this student does not "
      "(T5Config.scale_tied_logits = False); export it as hf"
    )


def best_weights(student: Student) -> tuple[int, StoredArrays]:
  """Returns the step of the student's best checkpoint and its weights, unrolled, not read yet.

  Raises:
    UserError: it has no checkpoint, or one that is damaged or of another student.
  """
  directory = student.directory / CHECKPOINTS
  if not has_checkpoint(directory):
    raise UserError(
      f"{student.directory}: has no checkpoint yet; train it further with the same command"
    )
  with contextlib.closing(Checkpoints(directory, keep_best=True, read_only=True)) as checkpoints:
    step = checkpoints.best_step()
  assert step is not None
  arrays = read_arrays(CheckpointFolder(directory / str(step) / "params"))
  arrays = unstacked(arrays, StoredArray.layers)
  difference = first_difference(shapes_of(arrays), model_shapes(student.config.model))
  if difference:
    name, theirs, ours = difference
    raise UserError(
      f"{directory / str(step)}: its weight {name} is {theirs}, but the student's configuration "
      f"says {ours}; restore the folder from a copy"
    )
  return step, arrays


def _empty_target(output: str | os.PathLike[str]) -> str:
  name = os.fspath(output)
  if not name:
    raise UserError("--output: is an empty name; give the name of a folder")
  if is_dir(name):
    present = list_folder(name)
    if present:
      raise UserError(f"--output {name}: holds {present[0]!r} already; give a new or empty folder")
  elif exists(name) or os.path.lexists(name):
    raise UserError(f"--output {name}: is a file; give the name of a new folder")
  return name
