"""A student's folder, MODEL_DIR: its files, its lock, and starting or resuming a run in it."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import secrets
import time
import types
from collections.abc import Iterator
from typing import Any

from dss_jax import __version__
from dss_jax.config.gin_loader import load_config, to_gin
from dss_jax.config.schema import MUTABLE_ON_RESUME, TARGET_KINDS, RunConfig, flatten
from dss_jax.data.pipeline import PreparedData
from dss_jax.data.shared_encoder import prefixes, start_tokens
from dss_jax.data.texts import is_unicode
from dss_jax.data.vocabularies import Vocabulary
from dss_jax.errors import UserError
from dss_jax.storage.atomic import write_text
from dss_jax.storage.files import is_url, reason
from dss_jax.storage.locks import try_lock
from dss_jax.student.input_profile import profile_inputs, write_profile
from dss_jax.student.layer_choice import LayerChoice
from dss_jax.train.checkpointing import check_name, has_checkpoint

CONFIG, CARD, CHECKPOINTS, LOCK = "config.gin", "model.json", "checkpoints", ".lock"

_NONCE_SECONDS = 30.0


def with_vocab_size(config: RunConfig, vocabulary: Vocabulary) -> RunConfig:
  """Returns the configuration with the number of embedding rows set.

  Unless configured, it is the vocabulary's size rounded up to a multiple of 128, as in the public
  checkpoints (T5: 32,100 to 32,128).
  """
  size = config.model.vocab_size
  if size is None:
    size = -(-vocabulary.size // 128) * 128
  if size < vocabulary.size:
    raise UserError(
      f"T5Config.vocab_size = {size} is smaller than the vocabulary {vocabulary.spec}, which has "
      f"{vocabulary.size} ids; leave it out to have it chosen"
    )
  return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def check_directory(config: RunConfig) -> None:
  """Raises UserError if MODEL_DIR has another run or other files, or cannot be a folder."""
  name = config.model_dir
  if not name or is_url(name):
    what = "is a URL, but a run writes to this machine's disks" if name else "is an empty name"
    raise UserError(f"--model-dir {name}: {what}; give the name of a local folder")
  path = pathlib.Path(name)
  check_name(path.absolute())
  if holds_run(path):
    differing = differences(load_config(RunConfig, [str(path / CONFIG)]), config)
    if differing:
      raise UserError(
        f"--model-dir {path}: holds a run with another configuration: {'; '.join(differing)}; "
        "give a new folder, or the same configuration to resume"
      )
  elif os.path.isdir(path):
    # A run that was killed during annotation has left only these.
    own = (".", "annotated.")
    strangers = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(own))
    if strangers:
      raise UserError(
        f"--model-dir {path}: holds {strangers[0]!r} but no run; give a new or empty folder"
      )
  elif os.path.exists(path):
    raise UserError(f"--model-dir {path}: is a file; give the name of a folder")


def holds_run(path: pathlib.Path) -> bool:
  # Unlike pathlib's, false for names that no file can have, such as with NUL.
  return os.path.isfile(path / CONFIG)


def differences(old: RunConfig, new: RunConfig) -> list[str]:
  """Returns the fields that make it another run, each as `name was OLD, is NEW`.

  More train_steps are the same run if the learning rate does not depend on them. An unset
  vocabulary size (see with_vocab_size) is equal to any.
  """
  free = set(MUTABLE_ON_RESUME)
  if new.model.vocab_size is None:
    free.add("T5Config.vocab_size")
  if new.initial_checkpoint is not None:
    # Set by the initial checkpoint, as an unset vocabulary size is.
    free.add("T5Config.shared_relpos_bias")
  if new.optimizer.schedule == "constant" and new.train_steps >= old.train_steps:
    free.add("RunConfig.train_steps")
  old_fields, new_fields = flatten(old), flatten(new)
  return [
    f"{name} was {old_fields[name]!r}, is {new_fields[name]!r}"
    for name in new_fields
    if name not in free and old_fields[name] != new_fields[name]
  ]


@contextlib.contextmanager
def locked(config: RunConfig) -> Iterator[pathlib.Path]:
  """Creates MODEL_DIR if needed and locks it, for one run at a time."""
  path = pathlib.Path(config.model_dir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    lock = (path / LOCK).open("a")
    is_ours = try_lock(lock)
  except (OSError, ValueError) as error:
    raise UserError(
      f"--model-dir {path}: cannot be written ({reason(error)}); give another folder"
    ) from error
  with lock:
    if not is_ours:
      raise UserError(
        f"--model-dir {path}: another run is writing there; wait for it, or give another folder"
      )
    yield path


def write_nonce(path: pathlib.Path) -> str:
  """Writes a nonce into MODEL_DIR's lock file, for check_nonce on other machines."""
  nonce = secrets.token_hex(8)
  (path / LOCK).write_text(nonce, encoding="utf-8")
  return nonce


def check_nonce(path: pathlib.Path, nonce: str) -> None:
  """Raises UserError if MODEL_DIR is not the folder that process 0 wrote the nonce into.

  Waits, since a network file system may show it late.
  """
  deadline = time.monotonic() + _NONCE_SECONDS
  while True:
    try:
      if (path / LOCK).read_text(encoding="utf-8") == nonce:
        return
    except OSError:
      pass
    if time.monotonic() > deadline:
      raise UserError(
        f"--model-dir {path}: is not the folder that process 0 writes to; give one on a file "
        "system that all machines share"
      )
    time.sleep(0.1)


def begin(
  config: RunConfig,
  data: PreparedData,
  teacher_digest: str | None = None,
  initial_layers: LayerChoice | None = None,
) -> dict[str, Any]:
  """Returns the run's card.

  For a new run, writes config.gin, the vocabulary's copy, the profile of the inputs and the card.

  For a run that was started before, nothing is written, and its data and its teacher model must
  be the same, else UserError is raised.

  Args:
    teacher_digest: of the network or the file whose outputs the run trains on.
    initial_layers: the layers that were taken of an initial checkpoint that has more.
  """
  path = pathlib.Path(config.model_dir)
  fingerprints = {
    "train": data.train.fingerprint,
    "evaluation": None if data.evaluation is None else data.evaluation.fingerprint,
  }
  if (path / CARD).exists():
    card = read_card(path / CARD)
    changed = [name for name, value in fingerprints.items() if card["data"][name] != value]
    if changed:
      raise UserError(
        f"--model-dir {path}: the {changed[0]} data are not those that this run began with; "
        "give a new folder, or the old data to resume"
      )
    if (card.get("teacher_model") or {}).get("digest") != teacher_digest:
      raise UserError(
        f"--model-dir {path}: this run began with another teacher than "
        f"{config.signals.model or config.signals.logits}; "
        "give a new folder, or the old teacher to resume"
      )
    return card
  # Written first, since a folder without it is not recognised as a run.
  write_config(config)
  copy = data.vocabulary.save_copy(path)
  starts = start_tokens(config.data, data.vocabulary)
  write_profile(path, profile_inputs(data.train_rows, data.train, data.vocabulary))
  card = {
    "student": config.student,
    "vocabulary": {
      "spec": data.vocabulary.spec,
      "digest": data.vocabulary.digest,
      "size": data.vocabulary.size,
      "file": None if copy is None else pathlib.Path(copy).name,
    },
    "prefixes": dict(zip(TARGET_KINDS, prefixes(config.data), strict=True)),
    "start_tokens": dict(zip(TARGET_KINDS, starts, strict=True)),
    "longest_target_tokens": data.train.longest_target_tokens,
    "data": {**fingerprints, "truncated": data.train.truncated, "report": data.report},
    "teacher_model": None
    if teacher_digest is None
    else {"model": config.signals.model or config.signals.logits, "digest": teacher_digest},
    "initial_layers": initial_layers,
    "finished": False,
    "steps": 0,
    "best_step": None,
    "stopped_early": False,
    "metrics": {},
    "versions": versions(),
  }
  write_card(path, card)
  return card


def stored_config(config: RunConfig) -> RunConfig:
  """Reads the configuration of the run in MODEL_DIR."""
  return load_config(RunConfig, [str(pathlib.Path(config.model_dir) / CONFIG)])


def has_begun_training(config: RunConfig) -> bool:
  """Returns whether the run in MODEL_DIR has a checkpoint."""
  return has_checkpoint(pathlib.Path(config.model_dir) / CHECKPOINTS)


def is_finished(config: RunConfig, card: dict[str, Any]) -> bool:
  """Returns whether the run in MODEL_DIR is complete."""
  newest = pathlib.Path(config.model_dir) / CHECKPOINTS / str(card["steps"])
  ended = card["stopped_early"] or card["steps"] >= config.train_steps
  return card["finished"] and ended and newest.is_dir()


def write_config(config: RunConfig) -> None:
  path = pathlib.Path(config.model_dir) / CONFIG
  write_text(path, f"# The whole configuration of this run.\n{to_gin(config)}")


def write_card(directory: pathlib.Path, card: dict[str, Any]) -> None:
  text = json.dumps(card, indent=2, ensure_ascii=False)
  # A data file's name may have bytes that are no text; as escapes they are JSON.
  write_text(directory / CARD, (text if is_unicode(text) else json.dumps(card, indent=2)) + "\n")


def versions() -> dict[str, str]:
  """Returns the versions of the libraries that results depend on."""
  names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "seqio", "numpy")
  return {
    "dss_jax": __version__,
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in names},
  }


# The fields of a card that the program reads, with their types.
_CARD_TYPES: dict[tuple[str, ...], type | types.UnionType] = {
  ("student",): str,
  ("vocabulary", "spec"): str,
  ("vocabulary", "digest"): str,
  ("vocabulary", "file"): str | None,
  ("prefixes", "label"): str,
  ("prefixes", "rationale"): str,
  ("longest_target_tokens", "label"): int,
  ("longest_target_tokens", "rationale"): int,
  ("data", "train"): str,
  ("data", "evaluation"): str | None,
  ("finished",): bool,
  ("steps",): int,
  ("best_step",): int | None,
  ("stopped_early",): bool,
  ("metrics",): dict,
}


def read_card(path: pathlib.Path) -> dict[str, Any]:
  mend = "restore it from a copy, or delete it and run the training command again"
  try:
    card = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise UserError(
      f"{path}: is missing, so the student cannot be opened; run the training command again"
    ) from error
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: cannot be read as JSON ({reason(error)}); {mend}") from error
  for keys, kind in _CARD_TYPES.items():
    value: Any = card
    for key in keys:
      value = value.get(key, ...) if isinstance(value, dict) else ...
    if not isinstance(value, kind):
      raise UserError(f'{path}: "{".".join(keys)}" is missing or damaged; {mend}')
  return card
