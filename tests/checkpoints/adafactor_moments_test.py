"""Adafactor's moments beside T5X's weights: read as they are, scanned ones as unrolled."""

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization

from dss_jax.checkpoints.adafactor_moments import moments_of
from dss_jax.checkpoints.arrays import in_memory
from dss_jax.checkpoints.orbax import read_t5x_orbax_moments
from dss_jax.checkpoints.t5x_read import read_t5x_moments
from dss_jax.checkpoints.t5x_write import write_t5x, write_t5x_orbax

NOTHING = np.zeros(1, np.float32)
LAYERS = 3


def test_the_moments_of_t5xs_orbax_checkpoint(shared, small):
  folder = shared / "checkpoints/t5x_orbax_tiny"
  stored = read_t5x_orbax_moments(folder)
  theirs = ocp.PyTreeCheckpointer().restore(folder / "state")
  assert stored.step == theirs["state"]["step"] > 0
  kernel = theirs["state"]["param_states"]["decoder"]["layers_1"]["mlp"]["wo"]["kernel"]
  read = stored.v["decoder.layers_1.mlp.wo.kernel"].whole()
  np.testing.assert_array_equal(read, kernel["v"], strict=True)
  assert read.min() > 0
  # So small a model has nothing to factor.
  assert (dict(stored.v_row), dict(stored.v_col), stored.has_momentum) == ({}, {}, False)


def test_the_moments_of_t5xs_native_checkpoint(shared):
  stored = read_t5x_moments(shared / "checkpoints/t5x_native_tiny")
  assert stored.step == 200
  assert stored.v["token_embedder.embedding"].shape == (384, 8)
  assert all(array.whole().min() > 0 for array in stored.v.values())


def test_the_moments_of_t5xs_scanned_checkpoint(shared):
  """128 wide, two heads of 64: the attention's matrices are square, the others not."""
  stored = read_t5x_moments(shared / "checkpoints/t5x_native_scan_bf16")
  assert len(stored.v_row) == len(stored.v_col) == 2 + 3 * (7 + 11)
  for name, row in stored.v_row.items():
    wide = name.rpartition(".")[0].rpartition(".")[2]
    sides = {"embedding": 384, "logits_dense": 384, "wi_0": 256, "wi_1": 256, "wo": 256}
    wide = name.split(".")[1] if "layers" not in name else wide
    assert row.shape == (128,), name
    assert stored.v_col[name].shape == (sides.get(wide, 128),), name
  assert stored.v["encoder.layers_2.relpos_bias.rel_embedding"].shape == (2, 32)
  assert stored.v["decoder.decoder_norm.scale"].shape == (128,)


# The shape of one layer's matrix, the axes of the scanned one after the model's width (ROW) and
# the rest (COLUMN), and where the layers lie.
QUERY = "encoder.encoder.attention.query.kernel"
OUT = "encoder.encoder.attention.out.kernel"


@pytest.mark.parametrize("heads", [1, 2, 4], ids=["narrower", "square", "wider"])
@pytest.mark.parametrize("scanned", [QUERY, OUT])
def test_scanned_moments_are_those_of_each_layer(scanned, heads, arrays):
  """The means of squares as T5X takes them of the stack, against those of each matrix."""
  embed, head_dim = 8, 4
  generator = np.random.default_rng(heads)
  if scanned == QUERY:
    squares = generator.random((embed, LAYERS, heads, head_dim), np.float32)
    row, column = squares.mean((2, 3)), squares.mean(0)
    matrices = [squares[:, layer].reshape(embed, -1) for layer in range(LAYERS)]
  else:
    squares = generator.random((heads, LAYERS, head_dim, embed), np.float32)
    row, column = squares.mean((0, 2)), squares.mean(3)
    matrices = [squares[:, layer].reshape(-1, embed) for layer in range(LAYERS)]
  arrays = {"v_row": row, "v_col": column, "v": NOTHING, "m": NOTHING}
  stored = moments_of(
    {f"{scanned}.{kind}": in_memory(array) for kind, array in arrays.items()}, np.int32(5), "here"
  )
  assert stored.v == {}
  for layer, matrix in enumerate(matrices):
    name = scanned.replace("encoder.encoder", f"encoder.layers_{layer}")
    shorter, longer = np.argsort(matrix.shape)
    np.testing.assert_allclose(stored.v_row[name].whole(), matrix.mean(longer), rtol=1e-6)
    np.testing.assert_allclose(stored.v_col[name].whole(), matrix.mean(shorter), rtol=1e-6)


def single_file(folder, step, **kinds):
  """T5X's oldest layout, with the moments of one weight."""
  weight = np.ones(3, np.float32)
  state = {"step": step, "param_states": {"scale": kinds}}
  tree = {"version": 3, "optimizer": {"target": {"scale": weight}, "state": state}}
  path = folder / "checkpoint_9"
  path.write_bytes(serialization.msgpack_serialize(tree))
  return path


def test_a_momentum_is_told_of_and_left(tmp_path):
  ones = np.ones(3, np.float32)
  stored = read_t5x_moments(single_file(tmp_path, np.asarray(7, np.int32), v=ones, m=ones))
  assert (stored.step, set(stored.v), stored.has_momentum) == (7, {"scale"}, True)


def test_what_is_no_state_of_adafactor(tmp_path, refusal):
  ones = np.ones(3, np.float32)
  adam = single_file(tmp_path, np.asarray(7, np.int32), grad_ema=ones, grad_sq_ema=ones)
  assert "the optimizer's scale.grad_ema is no moment of Adafactor" in refusal(
    read_t5x_moments, adam
  )
  negative = single_file(tmp_path, np.asarray(-7, np.int32), v=ones)
  assert "step is -7, no count" in refusal(read_t5x_moments, negative)
  wrong = single_file(tmp_path, ones, v=ones)
  assert "the optimizer's step is no number" in refusal(read_t5x_moments, wrong)


def test_weights_alone_are_refused(tmp_path, arrays, refusal):
  arrays = {"scale": in_memory(np.ones(3, np.float32))}
  float32 = np.dtype(np.float32)
  native = write_t5x(arrays, tmp_path / "a", step=3, dtype=float32)
  orbax = write_t5x_orbax(arrays, tmp_path / "b", step=3, dtype=float32)
  for read, path in ((read_t5x_moments, native), (read_t5x_orbax_moments, orbax)):
    assert "holds the weights alone, no state of Adafactor" in refusal(read, path)
