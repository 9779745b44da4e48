"""A student's folder, MODEL_DIR: what lies in it, how it is opened, begun and finished."""

import contextlib
import dataclasses
import fcntl
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Iterator
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh

from dss_jax import __version__
from dss_jax.config import FREE_ON_RESUME, RunConfig, flatten
from dss_jax.data.files import atomic_target
from dss_jax.data.prepare import PreparedData
from dss_jax.data.row_source import EXPLAIN_PREFIX, PREDICT_PREFIX
from dss_jax.data.vocabularies import Vocabulary, load_vocabulary
from dss_jax.errors import UserError
from dss_jax.gin_door import load_config, to_gin
from dss_jax.model.t5 import init_params
from dss_jax.train import mesh as meshes
from dss_jax.train.checkpoint import Checkpoints

CONFIG, CARD = "config.gin", "model.json"


@dataclasses.dataclass(frozen=True)
class Student:
  """A trained (or half-trained) student on disk."""

  directory: pathlib.Path
  config: RunConfig
  card: dict[str, Any]  # model.json
  vocabulary: Vocabulary

  @classmethod
  def open(cls, directory: str | os.PathLike[str]) -> "Student":
    """Reads everything but the weights. Raises UserError where the folder is no student."""
    path = pathlib.Path(directory)
    if not (path / CONFIG).is_file():
      raise UserError(f"{path}: holds no {CONFIG}, so it is no student; give a --model-dir of dss")
    config = load_config(RunConfig, [str(path / CONFIG)])
    card = _read_card(path / CARD)
    spec = card["vocabulary"]["spec"]
    copy = card["vocabulary"]["file"]
    vocabulary = load_vocabulary(spec if copy is None else path / copy)
    if vocabulary.digest != card["vocabulary"]["digest"]:
      raise UserError(
        f"{path}: the vocabulary {copy or spec} is not the one that the student was trained with; "
        "restore the folder from a copy"
      )
    return cls(path, config, card, vocabulary)

  def params(self, mesh: Mesh) -> Any:
    """The weights of the best checkpoint (else the newest), laid out on the mesh."""
    with contextlib.closing(
      Checkpoints(self.directory / "checkpoints", keep_best=True)
    ) as checkpoints:
      step = checkpoints.best_step()
      if step is None:
        raise UserError(
          f"{self.directory}: has no checkpoint yet; train it further with the same command"
        )
      return checkpoints.restore_params(step, self.params_shape(mesh))

  def params_shape(self, mesh: Mesh) -> Any:
    """The shapes of the weights with their shardings."""
    boxed = jax.eval_shape(functools.partial(init_params, self.config.model), jax.random.key(0))
    rules = meshes.logical_rules(self.config.model, mesh)
    return jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      nn.meta.unbox(boxed),
      meshes.param_shardings(boxed, mesh, rules),
    )


def with_vocab_size(config: RunConfig, vocabulary: Vocabulary) -> RunConfig:
  """The configuration with the rows of the embedding table settled.

  They are the vocabulary's size rounded up to a multiple of 128, as the public checkpoints
  have it (T5: 32,100 to 32,128), unless the configuration says otherwise.
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


def check_directory(config: RunConfig) -> bool:
  """Whether MODEL_DIR holds this run already.

  Raises UserError where it holds another run, something else, or cannot be written.
  """
  path = pathlib.Path(config.model_dir)
  if not path.exists():
    return False
  if not path.is_dir():
    raise UserError(f"--model-dir {path}: is a file; give the name of a folder")
  if not (path / CONFIG).is_file():
    strangers = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    if strangers:
      raise UserError(
        f"--model-dir {path}: holds {strangers[0]!r} but no run; give a new or empty folder"
      )
    return False
  differing = differences(load_config(RunConfig, [str(path / CONFIG)]), config)
  if differing:
    raise UserError(
      f"--model-dir {path}: holds a run with another configuration: {'; '.join(differing)}; "
      "give a new folder, or the same configuration to resume"
    )
  return True


def differences(old: RunConfig, new: RunConfig) -> list[str]:
  """The fields that make it another run, each as `name was OLD, is NEW`.

  Longer training of a run whose learning rate does not depend on its length is the same run.
  """
  free = set(FREE_ON_RESUME)
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
  """MODEL_DIR, made if needed, for one run at a time."""
  path = pathlib.Path(config.model_dir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    lock = (path / ".lock").open("w")
  except OSError as error:
    raise UserError(
      f"--model-dir {path}: cannot be written ({error.strerror}); give another folder"
    ) from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise UserError(
        f"--model-dir {path}: another run is writing there; wait for it, or give another folder"
      ) from error
    yield path


def begin(config: RunConfig, data: PreparedData) -> dict[str, Any]:
  """Writes config.gin, the vocabulary's copy and a first model.json; the card.

  Where the run was begun before, its data must be the same: else UserError.
  """
  path = pathlib.Path(config.model_dir)
  fingerprints = {
    "train": data.train.fingerprint,
    "evaluation": None if data.evaluation is None else data.evaluation.fingerprint,
  }
  if (path / CARD).exists():
    card = _read_card(path / CARD)
    changed = [name for name, value in fingerprints.items() if card["data"][name] != value]
    if changed:
      raise UserError(
        f"--model-dir {path}: the {changed[0]} data are not those that this run began with; "
        "give a new folder, or the old data to resume"
      )
  else:
    copy = data.vocabulary.save_copy(path)
    card = {
      "student": config.student,
      "vocabulary": {
        "spec": data.vocabulary.spec,
        "digest": data.vocabulary.digest,
        "size": data.vocabulary.size,
        "file": None if copy is None else pathlib.Path(copy).name,
      },
      "prefixes": {"label": PREDICT_PREFIX, "rationale": EXPLAIN_PREFIX},
      "longest_target_tokens": data.train.longest_target_tokens,
      "data": {**fingerprints, "truncated": data.train.truncated, "report": data.report},
      "finished": False,
      "steps": 0,
      "best_step": None,
      "stopped_early": False,
      "metrics": {},
      "versions": versions(),
    }
  write_text(path / CONFIG, f"# The whole configuration of this run.\n{to_gin(config)}")
  write_card(path, card)
  return card


def write_card(directory: pathlib.Path, card: dict[str, Any]) -> None:
  write_text(directory / CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  with atomic_target(path) as file:
    file.write(text.encode("utf-8"))


def versions() -> dict[str, str]:
  """The versions that numbers depend on."""
  names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "seqio", "numpy")
  return {
    "dss_jax": __version__,
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in names},
  }


def _read_card(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise UserError(
      f"{path}: is missing, so the student cannot be opened; run the training command again"
    ) from error
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: cannot be read as JSON ({error}); restore it from a copy") from error
