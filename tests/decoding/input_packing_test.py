"""Inputs side by side in the encoder's rows."""

import numpy as np
import pytest

from dss_jax.decoding.input_packing import WIDTH, pack, padded_length


def assert_holds(packed, inputs):
  """Every placed input is there, as a segment of its own, and nothing else is."""
  flat, segments = packed.tokens_RW.ravel(), packed.segment_ids_RW.ravel()
  of_inputs = 0
  for number, start in packed.places.items():
    ids = inputs[number]
    np.testing.assert_array_equal(flat[start : start + len(ids)], ids)
    (segment,) = set(segments[start : start + len(ids)].tolist())
    row = packed.segment_ids_RW[start // packed.tokens_RW.shape[1]]
    assert segment > 0
    assert (row == segment).sum() == len(ids)
    of_inputs += len(ids)
  assert (segments > 0).sum() == of_inputs
  assert np.all(flat[segments == 0] == 0)


def inputs_of(*lengths):
  return {10 * n: list(range(1, length + 1)) for n, length in enumerate(lengths)}


def test_later_inputs_fill_the_gaps():
  inputs = inputs_of(150, 200, 100, 120, 50, 6)
  packed = pack(inputs, 2, 1, 0)
  assert packed.tokens_RW.shape == (2, WIDTH)
  # 120 fits nowhere beside 150 + 100 and 200 + 50.
  assert set(packed.places) == {0, 10, 20, 40, 50}
  assert_holds(packed, inputs)


@pytest.mark.parametrize(
  ("lengths", "most_rows", "multiple", "shape"),
  [
    ((5, 7), 4, 1, (2, 256)),
    ((5, 7), 4, 4, (4, 256)),
    ((257,), 4, 1, (1, 512)),
    ((257, 300), 4, 1, (2, 512)),
    ((3000,), 4, 1, (1, 3072)),
    ((3100,), 4, 2, (2, 4096)),
  ],
)
def test_shapes(lengths, most_rows, multiple, shape):
  packed = pack(inputs_of(*lengths), most_rows, multiple, 0)
  assert packed.tokens_RW.shape == shape
  assert len(packed.places) == len(lengths)
  assert_holds(packed, inputs_of(*lengths))


def test_padded_lengths():
  lengths = (1, 32, 33, 65, 300, 513, 768, 769, 1025)
  assert [padded_length(n, 32) for n in lengths] == [32, 32, 64, 128, 512, 768, 768, 1024, 1536]
