"""Reading Hugging Face's T5 folders: config.json and safetensors, never pickles."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors

from dss_jax.checkpoints.arrays import FLOATS, Index, StoredArray, StoredArrays
from dss_jax.checkpoints.hf_names import ALIASES, LM_HEAD, SHARED, UNUSED, hf_names, transposed
from dss_jax.config.schema import T5Config
from dss_jax.errors import UserError
from dss_jax.storage.files import is_url, reason

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_JSON_BYTES = 2**26
_DTYPES = {
  "F32": FLOATS["float32"],
  "F16": FLOATS["float16"],
  "BF16": FLOATS["bfloat16"],
  "F64": FLOATS["float64"],
}
_FAMILIES = ("t5", "mt5", "umt5")
_ACTIVATIONS: dict[str, tuple[Any, ...]] = {
  "gated-gelu": ("gelu", "linear"),
  "gated-gelu_new": ("gelu", "linear"),
  "relu": ("relu",),
  "gated-relu": ("relu", "linear"),
  "gated-silu": ("silu", "linear"),
  "gelu_new": ("gelu",),
}
# These are fixed in our network; with another value the weights would compute something else.
_FIXED = {
  "layer_norm_epsilon": 1e-6,
  "relative_attention_num_buckets": 32,
  "relative_attention_max_distance": 128,
  "pad_token_id": 0,
  "decoder_start_token_id": 0,
}
_BLOCK_ROWS = 4096


def read_hf(path: str | os.PathLike[str]) -> tuple[T5Config, StoredArrays]:
  """Returns the architecture in config.json, and the weights by our names, not read yet.

  Args:
    path: a local folder with config.json and model.safetensors, or several safetensors and
      their index. T5 1.0 and 1.1, Flan-T5, mT5, umT5 and ByT5.

  Raises:
    UserError: a file is missing, damaged, or a pickle; the model is not a T5; an array is missing
      or unknown.
  """
  if is_url(path):
    raise UserError(
      f"{path}: a Hugging Face folder is read from this machine only; download it and give its "
      "path here"
    )
  folder = pathlib.Path(path)
  config, may_have_head = _config(folder)
  theirs = _open_all(folder)
  if may_have_head and LM_HEAD in theirs:
    config = dataclasses.replace(config, logits_via_embedding=False, scale_tied_logits=True)
  names = hf_names(config)
  theirs = _without_copies(theirs, set(names.values()), folder)
  for ours, name in names.items():
    if name not in theirs:
      raise UserError(
        f"{folder}: the weight {name} (ours: {ours}) is missing; give a complete copy of the "
        "checkpoint"
      )
  extra = sorted(set(theirs) - set(names.values()))
  if extra:
    raise UserError(
      f"{folder}: holds the array {extra[0]} of shape {theirs[extra[0]].shape}, which a T5 of its "
      f"{CONFIG} has not; give a checkpoint of T5ForConditionalGeneration"
    )
  arrays = {ours: transposed(ours, theirs[name]) for ours, name in names.items()}
  rows = arrays["token_embedder.embedding"].shape
  if len(rows) == 2:
    config = dataclasses.replace(config, vocab_size=rows[0])
  return config, arrays


def read_eos_ids(path: str | os.PathLike[str]) -> tuple[int, ...]:
  """Returns the ids of config.json that end a text, one of which is the vocabulary's end mark.

  Raises UserError if they are not ids. Empty if config.json does not say.
  """
  place = pathlib.Path(path) / CONFIG
  value = _json(place).get("eos_token_id")
  ids = value if isinstance(value, list) else [] if value is None else [value]
  if not all(type(one) is int for one in ids):
    raise UserError(f"{place}: eos_token_id is {value!r:.80}; give the id of the end mark")
  return tuple(ids)


def _config(folder: pathlib.Path) -> tuple[T5Config, bool]:
  """Returns the architecture, and whether an lm_head, if present, makes the logits untied."""
  fields = _json(folder / CONFIG)
  place = folder / CONFIG
  family = fields.get("model_type") or _family_by_class(fields.get("architectures"))
  if family not in _FAMILIES:
    raise UserError(
      f"{place}: model_type is {family!r}; give the folder of a t5, mt5 or umt5 model"
    )
  for name, value in _FIXED.items():
    if fields.get(name, value) not in (value, None):
      raise UserError(
        f"{place}: {name} is {fields[name]!r}, but a student has {value!r}, so its weights would "
        "compute something else here; choose another checkpoint"
      )
  projection = fields.get("feed_forward_proj", "relu" if family == "t5" else "gated-gelu")
  if projection not in _ACTIVATIONS:
    raise UserError(
      f"{place}: feed_forward_proj is {projection!r}; give one of {', '.join(_ACTIVATIONS)}"
    )
  activation = projection.removeprefix("gated-")
  # transformers computes "gated-gelu" by gelu_new, the tanh approximation of gelu.
  same = ("gelu_new", "gelu_pytorch_tanh") if "gelu" in activation else (activation,)
  if (given := fields.get("dense_act_fn")) is not None and given not in same:
    raise UserError(
      f"{place}: dense_act_fn is {given!r}, but feed_forward_proj is {projection!r}; give the "
      f"{CONFIG} that the weights were saved with"
    )
  is_tied, is_scaled = _logits(fields, family)
  # transformers 5 writes tie_word_embeddings true even where the two tables differ.
  may_have_head = family != "t5" or not is_scaled
  try:
    decoder = "num_layers" if fields.get("num_decoder_layers") is None else "num_decoder_layers"
    config = T5Config(
      emb_dim=_count(fields, "d_model"),
      num_heads=_count(fields, "num_heads"),
      head_dim=_count(fields, "d_kv"),
      mlp_dim=_count(fields, "d_ff"),
      num_encoder_layers=_count(fields, "num_layers"),
      num_decoder_layers=_count(fields, decoder),
      mlp_activations=_ACTIVATIONS[projection],
      logits_via_embedding=is_tied,
      scale_tied_logits=is_scaled if is_tied else True,
      shared_relpos_bias=family != "umt5",
    )
    return config, may_have_head
  except (KeyError, TypeError) as error:
    raise UserError(
      f"{place}: the model's sizes are not all there ({reason(error)}); give the {CONFIG} that the "
      "weights were saved with"
    ) from None


def _family_by_class(architectures: Any) -> str | None:
  """Returns the family by its class's name: the published umT5 have no model_type."""
  classes = {f"{family.upper()}ForConditionalGeneration": family for family in _FAMILIES}
  names = architectures if isinstance(architectures, list) else []
  return next((classes[name] for name in names if name in classes), None)


def _count(fields: Mapping[str, Any], name: str) -> int:
  value = fields[name]
  # Bounded, since every layer of a declared 10^12 would get names.
  if type(value) is not int or not 1 <= value <= (10_000 if "layers" in name else 2**31):
    raise TypeError(f"{name} is {value!r}"[:80])
  return value


def _logits(fields: Mapping[str, Any], family: Any) -> tuple[bool, bool]:
  """Returns whether the logits are the embedding's, and whether tied logits are scaled.

  transformers 5 has a field for the scale of t5, scale_decoder_outputs. Without it they are
  scaled, but for mt5, whose public checkpoints are not tied and which transformers 5 ties unscaled.
  """
  is_tied = bool(fields.get("tie_word_embeddings", family == "t5"))
  is_scaled = bool(fields.get("scale_decoder_outputs", family != "mt5"))
  return is_tied or (is_scaled and "scale_decoder_outputs" in fields), is_scaled


def _open_all(folder: pathlib.Path) -> dict[str, StoredArray]:
  """Opens every array in the folder's safetensors files, by name."""
  if (folder / WEIGHTS_INDEX).is_file():
    files = _indexed_files(folder / WEIGHTS_INDEX)
  elif (folder / WEIGHTS).is_file():
    files = [WEIGHTS]
  else:
    pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLES)
    if pickles:
      raise UserError(
        f"{folder / pickles[0]}: is a pickle, which can run any program when it is read; convert "
        "it to safetensors (save_pretrained of a current transformers does)"
      )
    raise UserError(f"{folder}: holds no {WEIGHTS}; give a complete copy of the checkpoint")
  arrays: dict[str, StoredArray] = {}
  for name in files:
    for key, array in _open(folder / name).items():
      if key in arrays:
        raise UserError(
          f"{folder / name}: the array {key} stands in another file, too; give another copy of "
          "the checkpoint"
        )
      arrays[key] = array
  return arrays


def _indexed_files(path: pathlib.Path) -> list[str]:
  places = _json(path).get("weight_map")
  if not isinstance(places, dict) or not places:
    raise UserError(f"{path}: names no files under weight_map; give another copy of the checkpoint")
  files = sorted({str(name) for name in places.values()})
  for name in files:
    if pathlib.PurePath(name).name != name or not name.endswith(".safetensors") or "\\" in name:
      raise UserError(
        f"{path}: names the file {name!r:.80}, which is no safetensors file of this folder; do not "
        "trust this checkpoint"
      )
  return files


def _open(path: pathlib.Path) -> dict[str, StoredArray]:
  """Opens the arrays of one file; the library checks their offsets and sizes."""
  try:
    with safetensors.safe_open(path, "np") as opened:
      slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
      described = {key: (one.get_shape(), one.get_dtype()) for key, one in slices.items()}
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise UserError(
      f"{path}: is no safetensors file, or cut off ({reason(error)}); copy it again"
    ) from None
  arrays = {}
  for key, (shape, dtype) in described.items():
    if dtype not in _DTYPES:
      raise UserError(
        f"{path}: the array {key} holds {dtype}; a weight is one of {', '.join(_DTYPES)}"
      )
    part = functools.partial(_part, path, key, slices[key])
    arrays[key] = StoredArray(tuple(shape), _DTYPES[dtype], part)
  return arrays


def _part(path: pathlib.Path, key: str, opened: Any, index: Index) -> np.ndarray:
  try:
    return np.asarray(opened[index])
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise UserError(
      f"{path}: the array {key} cannot be read ({reason(error)}); copy the file again"
    ) from None


def _without_copies(
  arrays: Mapping[str, StoredArray], wanted: set[str], folder: pathlib.Path
) -> dict[str, StoredArray]:
  """Removes unused arrays and further copies of the embedding table, which must be equal."""
  kept = dict(arrays)
  for alias in (*ALIASES, LM_HEAD):
    if alias in wanted or alias not in kept:
      continue
    if SHARED not in kept and alias in ALIASES:
      kept[SHARED] = kept.pop(alias)
      continue
    copy = kept.pop(alias)
    if SHARED in kept and not _equal(copy, kept[SHARED]):
      raise UserError(
        f"{folder}: {alias} differs from {SHARED}, though {CONFIG} says that they are one table; "
        "give another copy of the checkpoint"
      )
  for name in UNUSED:
    kept.pop(name, None)
  return kept


def _equal(one: StoredArray, other: StoredArray) -> bool:
  if one.shape != other.shape:
    return False
  rows = [slice(i, min(i + _BLOCK_ROWS, one.shape[0])) for i in range(0, one.shape[0], _BLOCK_ROWS)]
  rest = tuple(slice(0, size) for size in one.shape[1:])
  return all(np.array_equal(one.read((row, *rest)), other.read((row, *rest))) for row in rows)


def _json(path: pathlib.Path) -> dict[str, Any]:
  try:
    if path.stat().st_size > _JSON_BYTES:
      raise ValueError(f"has more than {_JSON_BYTES:,} bytes")
    fields = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
      raise ValueError("is no object")
  except FileNotFoundError:
    raise UserError(f"{path}: no such file; give the folder of a Hugging Face T5") from None
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(
      f"{path}: cannot be read as JSON ({reason(error)}); copy the file again"
    ) from None
  return fields
