"""Damaged, mismatched and malicious T5X checkpoints: refused in a sentence, nothing loaded."""

import gzip
import json
import pickle
import shutil

import msgpack
import numpy as np
import pytest

from dss_jax.checkpoints.arrays import in_memory, shapes_of
from dss_jax.checkpoints.orbax import read_t5x_orbax
from dss_jax.checkpoints.t5x_read import read_t5x
from dss_jax.checkpoints.t5x_write import write_t5x, write_t5x_orbax

FLOAT32 = np.dtype(np.float32)
WEIGHT = "encoder.layers_0.mlp.wo.kernel"
FOLDER = f"target.{WEIGHT}"


@pytest.fixture
def native(arrays, tmp_path):
  """A native checkpoint to break."""
  return write_t5x(arrays, tmp_path, step=3, dtype=FLOAT32)


@pytest.mark.parametrize("path", [f"../elsewhere/{FOLDER}/", "/etc/", ".."])
def test_a_path_that_leads_out_is_refused(native, path, refusal, index):
  def lead_out(tree):
    index.leaf(tree, WEIGHT)["kvstore"]["path"] = path

  index.change(native, lead_out)
  message = refusal(read_t5x, native)
  assert f"the weight {WEIGHT} lies at" in message
  assert "leads out" in message


def test_a_link_that_leads_out_is_refused(native, tmp_path, refusal):
  shutil.move(native / FOLDER, tmp_path / "outside")
  (native / FOLDER).symlink_to(tmp_path / "outside")
  assert "leads out" in refusal(read_t5x, native)


def test_the_index_does_not_choose_the_store(native, arrays, assert_same, refusal, index):
  """Only the name of the folder is taken from it: driver and address are ours."""

  def elsewhere(tree):
    index.leaf(tree, WEIGHT)["kvstore"].update(driver="gcs", bucket="elsewhere")

  index.change(native, elsewhere)
  assert_same(read_t5x(native), arrays)

  def other(tree):
    index.leaf(tree, WEIGHT)["driver"] = "json"

  index.change(native, other)
  assert "'json', not zarr" in refusal(read_t5x, native)


def test_a_huge_declared_shape_allocates_nothing(native, refusal, index):
  huge = [2**40, 2**20]

  def declare(tree):
    index.leaf(tree, WEIGHT)["metadata"]["shape"] = huge

  index.change(native, declare)
  assert f"says that the weight {WEIGHT} is {tuple(huge)}" in refusal(read_t5x, native)
  description = native / FOLDER / ".zarray"
  fields = json.loads(description.read_text())
  description.write_text(json.dumps({**fields, "shape": huge}))
  assert shapes_of(read_t5x(native))[WEIGHT] == tuple(huge)
  description.write_text(json.dumps({**fields, "chunks": huge}))
  assert "declares chunks of" in refusal(read_t5x, native)


def test_a_million_declared_layers_are_refused(tmp_path, arrays, refusal, index):
  arrays = {"encoder.encoder.pre_mlp_layer_norm.scale": in_memory(np.zeros((4, 3), np.float32))}
  path = write_t5x(arrays, tmp_path, step=1, dtype=FLOAT32)
  description = next(path.glob("target.*")) / ".zarray"
  fields = json.loads(description.read_text())
  description.write_text(json.dumps({**fields, "shape": [4, 10**6]}))

  def declare(tree):
    index.leaf(tree, next(iter(arrays)))["metadata"]["shape"] = [4, 10**6]

  index.change(path, declare)
  assert "declares 1,000,000 layers" in refusal(read_t5x, path)


@pytest.mark.parametrize("kept", [0, 1, 50, 0.5, 0.99])
def test_a_cut_off_index_is_refused(native, kept, refusal):
  raw = (native / "checkpoint").read_bytes()
  size = int(len(raw) * kept) if isinstance(kept, float) else kept
  (native / "checkpoint").write_bytes(raw[:size])
  assert str(native / "checkpoint") in refusal(read_t5x, native)


@pytest.mark.parametrize(
  "raw",
  [
    b"\x91" * 100_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xc7\xff\x01",
    msgpack.packb({"optimizer": {"target": {"a.b": 1}}}),
    msgpack.packb({"optimizer": {"target": {"a": 1}}}),
    msgpack.packb({"optimizer": {"target": {}}}),
    msgpack.packb({"version": 9, "optimizer": {"target": {"a": 1}}}),
    msgpack.packb([1, 2]),
    msgpack.packb(
      {"target": {"a": msgpack.ExtType(1, msgpack.packb(((2**40,), "float32", b"1234")))}}
    ),
    msgpack.packb({"target": {"a": msgpack.ExtType(1, msgpack.packb(((1,), "object", b"1234")))}}),
  ],
)
def test_a_made_up_index_is_refused(tmp_path, raw, refusal):
  (tmp_path / "checkpoint").write_bytes(raw)
  assert str(tmp_path / "checkpoint") in refusal(read_t5x, tmp_path)


def test_a_pickle_is_not_opened(tmp_path, refusal):
  class Boom:
    def __reduce__(self):
      return (exec, (f"open({str(tmp_path / 'boom')!r}, 'w')",))

  (tmp_path / "checkpoint").write_bytes(pickle.dumps(Boom()))
  assert "is a pickle" in refusal(read_t5x, tmp_path)
  assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("damage", ["missing", "cut", "changed", "longer"])
def test_a_damaged_chunk_names_its_weight(native, arrays, damage, refusal):
  chunk = native / FOLDER / "0.0"
  raw = bytearray(chunk.read_bytes())
  if damage == "missing":
    chunk.unlink()
  elif damage == "cut":
    chunk.write_bytes(raw[: len(raw) // 2])
  elif damage == "changed":
    raw[len(raw) // 2] ^= 1
    chunk.write_bytes(raw)
  else:
    chunk.write_bytes(gzip.compress(bytes(10**6)))
  stored = read_t5x(native)
  message = refusal(stored[WEIGHT].whole)
  assert f"the weight {WEIGHT} cannot be read" in message
  assert str(native) in message


def test_an_array_that_is_gone_names_its_weight(native, refusal):
  (native / FOLDER / ".zarray").unlink()
  assert f"the weight {WEIGHT} has no .zarray" in refusal(read_t5x, native)


@pytest.mark.parametrize(
  "field", [{"dtype": "|O"}, {"zarr_format": 3}, {"filters": [{"id": "x"}]}, {"shape": [-1, 2]}]
)
def test_an_array_of_something_else_is_refused(native, field, refusal):
  description = native / FOLDER / ".zarray"
  description.write_text(json.dumps({**json.loads(description.read_text()), **field}))
  assert "describes no array of floats" in refusal(read_t5x, native)


def test_orbax_folders_are_refused_in_a_sentence(arrays, tmp_path, refusal):
  assert "holds no zarr arrays" in refusal(read_t5x_orbax, tmp_path)
  path = write_t5x_orbax(arrays, tmp_path, step=1, dtype=FLOAT32)
  manifest = path / "state/manifest.ocdbt"
  manifest.write_bytes(manifest.read_bytes()[:-5])
  assert str(path / "state") in refusal(read_t5x_orbax, path)


def test_an_address_of_an_unknown_kind_is_refused(refusal):
  assert "weights are not read from ftp://" in refusal(read_t5x, "ftp://host/checkpoint_1")
