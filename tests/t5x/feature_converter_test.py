"""Rows that T5X trains on, by hand: the task and the segment of each token, packed or not."""

import numpy as np
import pytest

WHY = "T5X is not installed (docs/t5x.md)"
pytestmark = pytest.mark.t5x
pytest.importorskip("t5x.models", reason=WHY, exc_type=ImportError)
tf = pytest.importorskip("tensorflow")
converter = pytest.importorskip("dss_jax.t5x.feature_converter")

LENGTHS = {"inputs": 12, "targets": 10}
# Two examples with label (part 1) and rationale (part 2), and one of a rationale alone.
EXAMPLES = [
  {"inputs": [7, 8, 9, 8], "input_kinds": [1, 1, 2, 2],
   "targets": [3, 1, 4, 5, 1], "target_kinds": [1, 1, 2, 2, 2]},
  {"inputs": [6, 5], "input_kinds": [1, 2],
   "targets": [1, 2, 1], "target_kinds": [1, 2, 2]},
  {"inputs": [4, 4, 4], "input_kinds": [2, 2, 2],
   "targets": [8, 1], "target_kinds": [2, 2]},
]  # fmt: skip


def rows_of(examples, *, pack):
  def read():
    yield from ({name: np.array(x, np.int32) for name, x in row.items()} for row in examples)

  signature = {name: tf.TensorSpec([None], tf.int32) for name in examples[0]}
  dataset = tf.data.Dataset.from_generator(read, output_signature=signature)
  rows = converter.StepByStepFeatureConverter(pack=pack)(dataset, LENGTHS)
  return list(rows.as_numpy_iterator())


def assert_rows(rows, *wanted):
  assert len(rows) == len(wanted)
  for row, want in zip(rows, wanted, strict=True):
    assert set(row) == set(converter.StepByStepFeatureConverter.MODEL_FEATURES)
    for name, values in want.items():
      length = LENGTHS["inputs" if name.startswith("encoder") else "targets"]
      np.testing.assert_array_equal(row[name], values + [0] * (length - len(values)), name)


def test_an_example_is_a_row():
  assert_rows(
    rows_of(EXAMPLES, pack=False),
    {
      "encoder_input_tokens": [7, 8, 9, 8],
      "encoder_segment_ids": [1, 1, 2, 2],
      "decoder_target_tokens": [3, 1, 4, 5, 1],
      "decoder_input_tokens": [0, 3, 0, 4, 5],
      "decoder_loss_weights": [1, 1, 1, 1, 1],
      "decoder_segment_ids": [1, 1, 2, 2, 2],
      "decoder_target_kinds": [0, 0, 1, 1, 1],
    },
    {
      "encoder_segment_ids": [1, 2],
      "decoder_target_tokens": [1, 2, 1],
      "decoder_input_tokens": [0, 0, 2],
      "decoder_target_kinds": [0, 1, 1],
    },
    {
      "encoder_segment_ids": [2, 2, 2],
      "decoder_input_tokens": [0, 8],
      "decoder_segment_ids": [2, 2],
      "decoder_target_kinds": [1, 1],
    },
  )


def test_the_tasks_survive_packing():
  """All three in one row; each sequence has a segment of its own, the same on both sides."""
  assert_rows(
    rows_of(EXAMPLES, pack=True),
    {
      "encoder_input_tokens": [7, 8, 9, 8, 6, 5, 4, 4, 4],
      "encoder_segment_ids": [1, 1, 2, 2, 3, 4, 6, 6, 6],
      "decoder_target_tokens": [3, 1, 4, 5, 1, 1, 2, 1, 8, 1],
      "decoder_input_tokens": [0, 3, 0, 4, 5, 0, 0, 2, 0, 8],
      "decoder_loss_weights": [1] * 10,
      "decoder_segment_ids": [1, 1, 2, 2, 2, 3, 4, 4, 6, 6],
      "decoder_target_kinds": [0, 0, 1, 1, 1, 0, 1, 1, 1, 1],
    },
  )


def test_what_does_not_fit_begins_another_row_as_a_whole():
  rows = rows_of([*EXAMPLES, EXAMPLES[1]], pack=True)
  assert [row["decoder_target_kinds"].tolist() for row in rows] == [
    [0, 0, 1, 1, 1, 0, 1, 1, 1, 1],
    [0, 1, 1, 0, 0, 0, 0, 0, 0, 0],
  ]


def test_an_ordinary_task_is_labels():
  example = {"inputs": [7, 8, 1], "targets": [3, 1]}
  assert_rows(
    rows_of([example], pack=False),
    {
      "encoder_segment_ids": [1, 1, 1],
      "decoder_input_tokens": [0, 3],
      "decoder_segment_ids": [1, 1],
      "decoder_target_kinds": [0, 0],
    },
  )
