"""Writing Hugging Face's T5 folders: config, safetensors and generation settings."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dss_jax.checkpoints.arrays import StoredArray, StoredArrays
from dss_jax.checkpoints.hf_names import hf_names, transposed
from dss_jax.checkpoints.hf_read import CONFIG, WEIGHTS, WEIGHTS_INDEX
from dss_jax.config.schema import T5Config
from dss_jax.errors import UserError
from dss_jax.storage.atomic import atomic_target, write_text, writing

# The size of a file in transformers.
SHARD_BYTES = 5 * 10**9
_DTYPES = {"float32": "F32", "bfloat16": "BF16"}
# feed_forward_proj and dense_act_fn; the tanh approximation of gelu is called gelu_new there.
_PROJECTIONS = {
  ("gelu", "linear"): ("gated-gelu", "gelu_new"),
  ("relu", "linear"): ("gated-relu", "relu"),
  ("silu", "linear"): ("gated-silu", "silu"),
  ("relu",): ("relu", "relu"),
  ("gelu",): ("gelu_new", "gelu_new"),
}
_ALIGNMENT = 8


def write_hf(
  arrays: StoredArrays,
  config: T5Config,
  folder: pathlib.Path,
  *,
  dtype: np.dtype,
  eos_id: int,
  max_new_tokens: int,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes config.json, generation_config.json and the weights into an existing folder.

  One array is in memory at a time. transformers' generate() returns the same ids as our greedy
  decoding.

  Args:
    eos_id: the vocabulary's end mark; padding is id 0.
    max_new_tokens: the default limit of generate().

  Raises:
    UserError: it cannot be written, a weight cannot be read, or Hugging Face's T5 cannot express
      the architecture.
  """
  if config.mlp_activations not in _PROJECTIONS:
    raise UserError(
      f"--format hf: T5Config.mlp_activations = {config.mlp_activations} has no counterpart in "
      "Hugging Face's T5; export it as t5x"
    )
  projection, activation = _PROJECTIONS[config.mlp_activations]
  # umT5 is the T5 whose layers each have a relative position bias of their own.
  family, architecture = ("t5", "T5ForConditionalGeneration")
  if not config.shared_relpos_bias:
    family, architecture = ("umt5", "UMT5ForConditionalGeneration")
    if config.logits_via_embedding and not config.scale_tied_logits:
      raise UserError(
        "--format hf: Hugging Face's umT5 scales tied logits, and this student does not "
        "(T5Config.scale_tied_logits = False); no format can express it"
      )
  theirs = {name: transposed(ours, arrays[ours]) for ours, name in hf_names(config).items()}
  _write_weights(folder, theirs, dtype, shard_bytes)
  start = {"decoder_start_token_id": 0, "eos_token_id": eos_id, "pad_token_id": 0}
  fields = {
    "architectures": [architecture],
    "model_type": family,
    "is_encoder_decoder": True,
    "d_model": config.emb_dim,
    "d_kv": config.head_dim,
    "d_ff": config.mlp_dim,
    "num_heads": config.num_heads,
    "num_layers": config.num_encoder_layers,
    "num_decoder_layers": config.num_decoder_layers,
    "vocab_size": config.vocab_size,
    "feed_forward_proj": projection,
    "dense_act_fn": activation,
    "is_gated_act": projection.startswith("gated-"),
    "tie_word_embeddings": config.logits_via_embedding,
    "scale_decoder_outputs": config.logits_via_embedding and config.scale_tied_logits,
    "dropout_rate": config.dropout_rate,
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "initializer_factor": 1.0,
    "use_cache": True,
    "dtype": dtype.name,
    "torch_dtype": dtype.name,
    **start,
  }
  write_json(folder / CONFIG, fields)
  write_json(folder / "generation_config.json", {**start, "max_new_tokens": max_new_tokens})


def write_json(path: pathlib.Path, fields: Mapping[str, Any]) -> None:
  write_text(path, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def _write_weights(
  folder: pathlib.Path, arrays: StoredArrays, dtype: np.dtype, shard_bytes: int
) -> None:
  sizes = {name: array.size * dtype.itemsize for name, array in arrays.items()}
  shards = _shards(sizes, shard_bytes)
  if len(shards) == 1:
    _write_safetensors(folder / WEIGHTS, arrays, dtype)
    return
  places = {}
  for number, names in enumerate(shards, start=1):
    file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    _write_safetensors(folder / file, {name: arrays[name] for name in names}, dtype)
    places.update(dict.fromkeys(names, file))
  total = {"total_size": sum(sizes.values())}
  write_json(
    folder / WEIGHTS_INDEX, {"metadata": total, "weight_map": dict(sorted(places.items()))}
  )


def _shards(sizes: Mapping[str, int], shard_bytes: int) -> Sequence[list[str]]:
  """Splits the names, in order, into files of at most the limit."""
  shards: list[list[str]] = [[]]
  filled = 0
  for name, size in sizes.items():
    if shards[-1] and filled + size > shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(name)
    filled += size
  return shards


def _write_safetensors(path: pathlib.Path, arrays: Mapping[str, StoredArray], dtype: Any) -> None:
  """Writes the header's length (8 bytes), the header, and the arrays one by one.

  The library's own writer needs all arrays in memory.
  """
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  offset = 0
  for name, array in arrays.items():
    end = offset + array.size * dtype.itemsize
    header[name] = {
      "dtype": _DTYPES[dtype.name],
      "shape": list(array.shape),
      "data_offsets": [offset, end],
    }
    offset = end
  encoded = json.dumps(header, separators=(",", ":")).encode()
  encoded += b" " * (-len(encoded) % _ALIGNMENT)
  with atomic_target(path) as file:
    with writing(path):
      file.write(len(encoded).to_bytes(8, "little") + encoded)
    for array in arrays.values():
      part = np.ascontiguousarray(array.whole().astype(dtype))
      with writing(path):
        file.write(part.tobytes())
