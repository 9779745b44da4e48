"""Registration of a trained student: what the registry keeps of a run's folder."""

import hashlib
import hmac
import pathlib
from collections.abc import Iterator
from typing import Any

from dss_jax.progress import say
from dss_jax.storage.atomic import copy_file
from dss_jax.storage.files import PathLike
from dss_jax.storage.sealed import DataKey
from dss_jax.storage.sealed_folders import files_below, seal_files
from dss_jax.student.export import best_weights
from dss_jax.student.input_profile import INPUTS
from dss_jax.student.model_dir import CARD, CHECKPOINTS, CONFIG
from dss_jax.student.registry import DEFAULT, Registry, Version
from dss_jax.student.sealed_student import SEALED, sealed_name
from dss_jax.student.student import Student
from dss_jax.train.checkpointing import BESIDE

# Of a checkpoint, what only resuming needs.
_FOR_RESUMING = ("optimizer", "progress", *BESIDE)


def register_student(
  directory: PathLike, name: str, registry: PathLike | None = None, key: DataKey | None = None
) -> Version:
  """Copies a student into the registry as the next version of a model; returns the version.

  The version has the selected checkpoint's weights, configuration, vocabulary and card, so it
  does not need the run's folder any more. A student that the model has already is returned, and
  not registered again: a run's configuration and card say which student it is.

  Args:
    key: encrypts the student; then what the registry says of it has nothing of its data.

  Raises:
    UserError: the folder is not a trained student, or as Registry.register does.
  """
  student = Student.open(pathlib.Path(directory).absolute())
  step, arrays = best_weights(student)
  registered = Registry(registry)
  source = digest_of(student)
  if key is not None:
    # A digest of few rows could be guessed.
    source = hmac.new(key.secret, source.encode("ascii"), hashlib.sha256).hexdigest()
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
    "source_digest": source,
  }
  if key is not None:
    record["encryption_spec"] = {"kmsKeyName": key.key_name}
  else:
    record |= {
      "metrics": student.card["metrics"],
      "lineage": _lineage(student),
      "report": student.card["data"].get("report"),
    }

  def fill(folder: pathlib.Path) -> None:
    files = _files(student, step)
    if key is not None:
      seal_files(folder / SEALED, key, sealed_name(name), files)
      return
    for source, inner in files:
      (folder / inner).parent.mkdir(parents=True, exist_ok=True)
      copy_file(source, folder / inner)

  version = registered.register(name, record, fill)
  default = registered.version(name)
  note = ""
  if default.number != version.number:
    note = (
      f"; {name} alone still means version {default.number}, until"
      f" `dss models alias {version.reference} {DEFAULT}`"
    )
  say(f"registered as {version.reference} in {registered.root}{note}")
  return version


def _files(student: Student, step: int) -> Iterator[tuple[pathlib.Path, str]]:
  """Yields what using the student needs, and no state of the optimizer, with names in it."""
  directory = student.directory
  for path in sorted(directory.iterdir()):
    if path.name in _files_of(student):
      yield path, path.name
  place = f"{CHECKPOINTS}/{step}"
  for path, name in files_below(directory / place):
    if name.partition("/")[0] not in _FOR_RESUMING:
      yield path, f"{place}/{name}"


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
