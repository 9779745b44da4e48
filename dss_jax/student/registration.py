"""Registration of a trained student: what the registry keeps of a run's folder."""

import hashlib
import pathlib
from typing import Any

from dss_jax.progress import say
from dss_jax.storage.atomic import copy_file, copy_tree
from dss_jax.storage.files import PathLike
from dss_jax.student.export import best_weights
from dss_jax.student.input_profile import INPUTS
from dss_jax.student.model_dir import CARD, CHECKPOINTS, CONFIG
from dss_jax.student.registry import DEFAULT, Registry, Version
from dss_jax.student.student import Student
from dss_jax.train.checkpointing import BESIDE

# Of a checkpoint, what only resuming needs.
_FOR_RESUMING = ("optimizer", "progress", *BESIDE)


def register_student(directory: PathLike, name: str, registry: PathLike | None = None) -> Version:
  """Copies a student into the registry as the next version of a model; returns the version.

  The version has the selected checkpoint's weights, configuration, vocabulary and card, so it
  does not need the run's folder any more. A student that the model has already is returned, and
  not registered again: a run's configuration and card say which student it is.

  Raises:
    UserError: the folder is not a trained student, or as Registry.register does.
  """
  student = Student.open(pathlib.Path(directory).absolute())
  step, arrays = best_weights(student)
  registered = Registry(registry)
  source = digest_of(student)
  known = registered.versions(name) if name in registered.names() else []
  for version in known:
    if version.record.get("source_digest") == source:
      say(f"registered already as {version.reference} in {registered.root}")
      return version
  record = {
    "student": student.config.student,
    "parameters": sum(array.size for array in arrays.values()),
    "step": step,
    "steps": student.card["steps"],
    "metrics": student.card["metrics"],
    "lineage": _lineage(student),
    "report": student.card["data"].get("report"),
    "source_digest": source,
  }
  version = registered.register(name, record, lambda folder: _fill(folder, student, step))
  default = registered.version(name)
  note = ""
  if default.number != version.number:
    note = (
      f"; {name} alone still means version {default.number}, until"
      f" `dss models alias {version.reference} {DEFAULT}`"
    )
  say(f"registered as {version.reference} in {registered.root}{note}")
  return version


def _fill(folder: pathlib.Path, student: Student, step: int) -> None:
  """Copies what using the student needs, and no state of the optimizer."""
  for path in sorted(student.directory.iterdir()):
    if path.name in _files_of(student):
      copy_file(path, folder / path.name)
  checkpoint = folder / CHECKPOINTS / str(step)
  checkpoint.mkdir(parents=True)
  for path in sorted((student.directory / CHECKPOINTS / str(step)).iterdir()):
    if path.is_file():
      copy_file(path, checkpoint / path.name)
    elif path.name not in _FOR_RESUMING:
      copy_tree(path, checkpoint / path.name)


def _files_of(student: Student) -> set[str | None]:
  return {CONFIG, CARD, INPUTS, student.card["vocabulary"]["file"]}


def digest_of(student: Student) -> str:
  """Returns a digest of the run's configuration and results, the same when it is resumed."""
  digest = hashlib.sha256()
  for name in (CONFIG, CARD):
    digest.update((student.directory / name).read_bytes() + b"\0")
  return digest.hexdigest()


def _lineage(student: Student) -> dict[str, Any]:
  """Returns what the student was made from."""
  config, data = student.config, student.card["data"]
  annotation = (data.get("report") or {}).get("annotation") or {}
  return {
    "model_dir": str(student.directory),
    "initial_checkpoint": config.initial_checkpoint,
    "initial_layers": student.card.get("initial_layers"),
    "dataset": config.data.dataset or config.data.task,
    "data_digest": data["train"],
    "evaluation_data_digest": data["evaluation"],
    "teacher": config.teacher.name,
    "teacher_model": student.card.get("teacher_model"),
    "prompt": config.teacher.prompt,
    "prompt_digest": annotation.get("prompt"),
    "review": annotation.get("review"),
    "config": CONFIG,
  }
