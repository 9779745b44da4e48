"""Examples of two sequences as rows for T5X: each token knows its sequence and its task.

A row of T5X's holds whole examples. An example is its `predict: ` and its `explain: ` sequence
end to end, so that no packing and no sharding can part them; segment ids keep their attention
apart.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import seqio
import tensorflow as tf

from dss_jax.config.schema import LABEL

# Of each token of an example: the task of its sequence, plus 1, since 0 is padding.
INPUTS_PART, TARGETS_PART = "inputs_part", "targets_part"

_Spec = seqio.FeatureConverter.FeatureSpec


class StepByStepFeatureConverter(seqio.EncDecFeatureConverter):
  """As SeqIO's, with `decoder_target_kinds` and with segment ids in packed and unpacked rows.

  The dataset's examples hold `inputs`, `targets` and, of the same lengths, `inputs_part` and
  `targets_part`; an ordinary SeqIO task, which lacks the parts, is taken as labels. Rows hold
    encoder_input_tokens, encoder_segment_ids: int32 [L]
    decoder_input_tokens, decoder_target_tokens, decoder_segment_ids: int32 [M]
    decoder_loss_weights: int32 [M], 1 on real targets
    decoder_target_kinds: int32 [M], 0 for the label, 1 for the rationale
  Segment ids count from 1 within a row, 0 is padding. Positions are left out: T5's are relative.
  """

  MODEL_FEATURES: ClassVar[Mapping[str, Any]] = {
    **seqio.EncDecFeatureConverter.MODEL_FEATURES,
    "encoder_segment_ids": _Spec(dtype=tf.int32),
    "decoder_segment_ids": _Spec(dtype=tf.int32),
    "decoder_target_kinds": _Spec(dtype=tf.int32),
  }
  PACKING_FEATURE_DTYPES: ClassVar[Mapping[str, tf.dtypes.DType]] = {}

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    if TARGETS_PART not in ds.element_spec:
      ds = ds.map(_as_labels, num_parallel_calls=tf.data.AUTOTUNE)
    lengths = {
      "inputs": task_feature_lengths["inputs"],
      INPUTS_PART: task_feature_lengths["inputs"],
      "targets": task_feature_lengths["targets"],
      TARGETS_PART: task_feature_lengths["targets"],
    }
    ds = self._pack_or_pad(ds, lengths)
    return ds.map(self._convert_example, num_parallel_calls=tf.data.AUTOTUNE)

  def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
    targets, part = features["targets"], features[TARGETS_PART]
    decoder_segments = self._segments(features, "targets", part)
    return {
      "encoder_input_tokens": features["inputs"],
      "encoder_segment_ids": self._segments(features, "inputs", features[INPUTS_PART]),
      "decoder_target_tokens": targets,
      "decoder_input_tokens": seqio.utils.make_autoregressive_inputs(
        targets, sequence_id=decoder_segments, bos_id=self.bos_id
      ),
      "decoder_loss_weights": seqio.non_padding_position(targets),
      "decoder_segment_ids": decoder_segments,
      "decoder_target_kinds": tf.maximum(part - 1, 0),
    }

  def _segments(self, features: Mapping[str, tf.Tensor], name: str, part: tf.Tensor) -> tf.Tensor:
    """2 * example + task + 1 on every token, examples counted from 0 within the row."""
    if not self.pack:
      return part
    examples = features[f"{name}_segment_ids"]
    return tf.where(part > 0, 2 * (examples - 1) + part, 0)

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
    return {
      name: task_feature_lengths["inputs" if name.startswith("encoder") else "targets"]
      for name in self.MODEL_FEATURES
    }


def _as_labels(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """One sequence of the label's task."""
  return {
    **example,
    INPUTS_PART: tf.fill(tf.shape(example["inputs"]), LABEL + 1),
    TARGETS_PART: tf.fill(tf.shape(example["targets"]), LABEL + 1),
  }
