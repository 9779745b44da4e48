"""T5X's checkpoints in and out: its own numbers, bit-identical round trips, and what is refused."""

import functools
import gzip
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization

from dss_jax.checkpoints import zarr as zarr_writer
from dss_jax.checkpoints.arrays import (
  BFLOAT16,
  StoredArray,
  architecture,
  in_memory,
  model_shapes,
  shapes_of,
)
from dss_jax.checkpoints.orbax import read_t5x_orbax
from dss_jax.checkpoints.t5x_read import newest_step, read_t5x
from dss_jax.checkpoints.t5x_write import write_t5x, write_t5x_orbax
from dss_jax.decoding.greedy import greedy
from dss_jax.errors import UserError
from dss_jax.model.t5 import Transformer

FLOAT32 = np.dtype(np.float32)
READERS = {
  "t5x_native_tiny": read_t5x,
  "t5x_native_scan_bf16": read_t5x,
  "t5x_tiny_t5_1_1.checkpoint_0": read_t5x,
  "t5x_orbax_tiny": read_t5x_orbax,
}
WEIGHT = "encoder.layers_0.mlp.wo.kernel"
FOLDER = f"target.{WEIGHT}"


@pytest.mark.parametrize("name", READERS)
def test_logits_are_t5x_s(shared, as_tree, name):
  stored = READERS[name](shared / "checkpoints" / name)
  config = architecture(shapes_of(stored), name)
  assert shapes_of(stored) == model_shapes(config)
  golden = np.load(shared / "checkpoints" / f"{name.split('.')[0]}.golden.npz")
  forward = jax.jit(Transformer(config).apply)
  prefixes = ["", "packed_"] if "packed_logits" in golden else [""]
  for prefix in prefixes:
    inputs, shifted, targets = (
      golden[prefix + field]
      for field in ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    )
    segments = [(tokens > 0).astype(np.int32) for tokens in (inputs, targets)]
    if prefix:
      segments = [golden[f"packed_{side}_segment_ids"] for side in ("encoder", "decoder")]
    logits = forward({"params": as_tree(stored)}, inputs, segments[0], shifted, segments[1])
    real = segments[1] > 0
    want = golden[f"{prefix}logits"][real]
    np.testing.assert_allclose(np.asarray(logits)[real], want, atol=1e-4, rtol=0)


def test_greedy_decoding_is_t5x_s(shared, as_tree):
  stored = read_t5x(shared / "checkpoints/t5x_native_tiny")
  golden = np.load(shared / "checkpoints/t5x_native_tiny.decode.npz")
  decode = functools.partial(
    greedy,
    config=architecture(shapes_of(stored), ""),
    max_decode_tokens=golden["greedy"].shape[-1],
    eos_id=1,
    pad_id=0,
  )
  got = jax.jit(decode)(as_tree(stored), encoder_input_tokens_BL=golden["encoder_input_tokens"])
  np.testing.assert_array_equal(got, golden["greedy"][:, 0])


def test_scanned_layers_decode_over_a_cache_as_without(shared, as_tree):
  """A bias of its own in each layer takes another way through the cache."""
  stored = read_t5x(shared / "checkpoints/t5x_native_scan_bf16")
  config = architecture(shapes_of(stored), "")
  assert not config.shared_relpos_bias
  params = as_tree(stored)
  golden = np.load(shared / "checkpoints/t5x_native_scan_bf16.golden.npz")
  inputs = golden["encoder_input_tokens"]
  tokens = 6
  decode = jax.jit(
    functools.partial(greedy, config=config, eos_id=1, pad_id=0, max_decode_tokens=tokens)
  )
  got = np.asarray(decode(params, encoder_input_tokens_BL=inputs))
  shifted = np.pad(got, [(0, 0), (1, 0)])[:, :-1]
  ones = np.ones_like(shifted)
  segments = (inputs > 0).astype(np.int32)
  logits = jax.jit(Transformer(config).apply)({"params": params}, inputs, segments, shifted, ones)
  whole = np.asarray(logits).argmax(-1)
  ended = np.cumsum(got == 1, axis=1) - (got == 1) > 0
  np.testing.assert_array_equal(np.where(ended, 0, whole), got)
  assert (~ended).sum() > 6


def test_a_native_leaf_is_what_the_bytes_say(shared):
  folder = shared / "checkpoints/t5x_native_tiny"
  stored = read_t5x(folder)
  assert len(stored) == 52
  for name, array in stored.items():
    chunk = folder / f"target.{name}" / ".".join("0" * len(array.shape))
    want = np.frombuffer(gzip.decompress(chunk.read_bytes()), "<f4").reshape(array.shape)
    np.testing.assert_array_equal(array.whole(), want, strict=True)


def test_a_single_file_is_what_flax_reads(shared, as_tree):
  path = shared / "checkpoints/t5x_tiny_t5_1_1.checkpoint_0"
  want = serialization.msgpack_restore(path.read_bytes())["optimizer"]["target"]
  jax.tree.map(np.testing.assert_array_equal, as_tree(read_t5x(path)), want)


def test_an_orbax_checkpoint_is_what_orbax_reads(shared, as_tree, assert_same):
  folder = shared / "checkpoints/t5x_orbax_tiny"
  want = ocp.PyTreeCheckpointer().restore(folder / "state")["target"]
  jax.tree.map(np.testing.assert_array_equal, as_tree(read_t5x_orbax(folder)), want)
  assert_same(read_t5x_orbax(folder / "state"), read_t5x_orbax(folder))


def test_arrays_cut_into_pieces_by_flax(arrays, tmp_path, monkeypatch, assert_same):
  monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 512)
  tree = {}
  for name, array in arrays.items():
    *parents, leaf = name.split(".")
    functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[leaf] = (
      array.whole()
    )
  raw = serialization.msgpack_serialize({"version": 1, "optimizer": {"target": tree}})
  assert b"__msgpack_chunked_array__" in raw
  (tmp_path / "checkpoint_7").write_bytes(raw)
  assert_same(read_t5x(tmp_path / "checkpoint_7"), arrays)


@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize(
  ("write", "read"), [(write_t5x, read_t5x), (write_t5x_orbax, read_t5x_orbax)]
)
def test_what_is_written_is_read_back(
  arrays, tmp_path, monkeypatch, write, read, kind, assert_same
):
  monkeypatch.setattr(zarr_writer, "CHUNK_BYTES", 1000)
  path = write(arrays, tmp_path / "out", step=12, dtype=kind)
  assert path == tmp_path / "out/checkpoint_12"
  assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["checkpoint_12"]
  cast = {name: in_memory(array.whole().astype(kind)) for name, array in arrays.items()}
  assert_same(read(path), cast)


def test_the_native_format_is_t5x_s(arrays, tmp_path, shared, index):
  """The index and the arrays' descriptions against those that T5X wrote."""
  theirs = shared / "checkpoints/t5x_native_tiny"
  stored = read_t5x(theirs)
  ours = write_t5x(stored, tmp_path, step=200, dtype=FLOAT32)
  tree, want = index.tree(ours), index.tree(theirs)
  assert tree["optimizer"]["target"] == want["optimizer"]["target"]
  assert tree["version"] == want["version"] == 3
  # An empty one makes T5X's loader crash.
  assert tree["optimizer"]["state"] == {"step": want["optimizer"]["state"]["step"]}
  for name in stored:
    for file in (theirs / f"target.{name}").iterdir():
      copy = ours / f"target.{name}" / file.name
      if file.name == ".zarray":
        assert json.loads(copy.read_text()) == json.loads(file.read_text())
      else:
        assert gzip.decompress(copy.read_bytes()) == gzip.decompress(file.read_bytes())


def test_orbax_itself_reads_what_is_written_as_its_own(arrays, tmp_path, as_tree):
  path = write_t5x_orbax(arrays, tmp_path, step=12, dtype=FLOAT32)
  restored = ocp.PyTreeCheckpointer().restore(path / "state")
  assert restored["state"] == {"step": 12}
  jax.tree.map(np.testing.assert_array_equal, restored["target"], as_tree(arrays))


def test_version_2_kept_bfloat16_as_unsigned_numbers(arrays, tmp_path, assert_same, index):
  path = write_t5x(arrays, tmp_path, step=1, dtype=BFLOAT16)

  def older(tree):
    tree["version"] = 2
    index.leaf(tree, WEIGHT)["dtype"] = "uint16"

  index.change(path, older)
  description = path / FOLDER / ".zarray"
  description.write_text(description.read_text().replace("bfloat16", "<u2"))
  cast = {name: in_memory(array.whole().astype(BFLOAT16)) for name, array in arrays.items()}
  assert_same(read_t5x(path), cast)


def test_zeros_are_stored_too(arrays, tmp_path, assert_same):
  """Chunks of zeros are stored too, so that a missing chunk is an error."""
  zeros = {name: in_memory(np.zeros(array.shape, np.float32)) for name, array in arrays.items()}
  assert_same(read_t5x(write_t5x(zeros, tmp_path, step=0, dtype=FLOAT32)), zeros)


def test_a_failed_write_leaves_nothing(arrays, tmp_path, refusal, index):
  def fail(index):
    raise UserError("the weight cannot be read")

  arrays[WEIGHT] = StoredArray(arrays[WEIGHT].shape, FLOAT32, fail)
  for write in (write_t5x, write_t5x_orbax):
    assert "cannot be read" in refusal(lambda write=write: write(
      arrays, tmp_path / "out", step=1, dtype=FLOAT32
    ))  # fmt: skip
    assert list((tmp_path / "out").iterdir()) == []


def test_the_largest_step_is_the_newest(tmp_path):
  for name in ("checkpoint_9", "checkpoint_10", "checkpoint_11.tmp-5", "other"):
    (tmp_path / name).mkdir()
  assert newest_step(tmp_path).name == "checkpoint_10"
  assert newest_step(tmp_path / "other") is None
