"""Examples of two sequences as rows for T5X, with the sequence and target kind of each token.

A row has whole examples. An example is its `predict: ` and its `explain: ` sequence,
concatenated, so that neither packing nor sharding can separate them; each attends to itself only,
by segment ids.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import seqio
import tensorflow as tf

from dss_jax.config.schema import LABEL

# The target kind of each token's sequence, plus 1, since 0 is padding.
INPUT_KINDS_FEATURE, TARGET_KINDS_FEATURE = "input_kinds", "target_kinds"

_Spec = seqio.FeatureConverter.FeatureSpec


class StepByStepFeatureConverter(seqio.EncDecFeatureConverter):
  """SeqIO's converter, with `decoder_target_kinds`, and segment ids also without packing.

  The dataset's examples have `inputs`, `targets` and, of the same lengths, `input_kinds` and
  `target_kinds`; an ordinary SeqIO task, without these, counts as labels. Rows have
    encoder_input_tokens, encoder_segment_ids: int32 [L]
    decoder_input_tokens, decoder_target_tokens, decoder_segment_ids: int32 [M]
    decoder_loss_weights: int32 [M], 1 on real targets
    decoder_target_kinds: int32 [M], 0 for the label, 1 for the rationale
  Segment ids count from 1 within a row, 0 is padding. There are no positions: T5's are relative.
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
    if TARGET_KINDS_FEATURE not in ds.element_spec:
      ds = ds.map(_as_labels, num_parallel_calls=tf.data.AUTOTUNE)
    lengths = {
      "inputs": task_feature_lengths["inputs"],
      INPUT_KINDS_FEATURE: task_feature_lengths["inputs"],
      "targets": task_feature_lengths["targets"],
      TARGET_KINDS_FEATURE: task_feature_lengths["targets"],
    }
    ds = self._pack_or_pad(ds, lengths)
    return ds.map(self._convert_example, num_parallel_calls=tf.data.AUTOTUNE)

  def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
    targets, kinds = features["targets"], features[TARGET_KINDS_FEATURE]
    decoder_segments = self._segments(features, "targets", kinds)
    return {
      "encoder_input_tokens": features["inputs"],
      "encoder_segment_ids": self._segments(features, "inputs", features[INPUT_KINDS_FEATURE]),
      "decoder_target_tokens": targets,
      "decoder_input_tokens": seqio.utils.make_autoregressive_inputs(
        targets, sequence_id=decoder_segments, bos_id=self.bos_id
      ),
      "decoder_loss_weights": seqio.non_padding_position(targets),
      "decoder_segment_ids": decoder_segments,
      "decoder_target_kinds": tf.maximum(kinds - 1, 0),
    }

  def _segments(self, features: Mapping[str, tf.Tensor], name: str, kinds: tf.Tensor) -> tf.Tensor:
    """Returns 2 * example + kind + 1 of every token, examples counted from 0 within the row."""
    if not self.pack:
      return kinds
    examples = features[f"{name}_segment_ids"]
    return tf.where(kinds > 0, 2 * (examples - 1) + kinds, 0)

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
    return {
      name: task_feature_lengths["inputs" if name.startswith("encoder") else "targets"]
      for name in self.MODEL_FEATURES
    }


def _as_labels(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """Marks the sequence as a label's."""
  return {
    **example,
    INPUT_KINDS_FEATURE: tf.fill(tf.shape(example["inputs"]), LABEL + 1),
    TARGET_KINDS_FEATURE: tf.fill(tf.shape(example["targets"]), LABEL + 1),
  }
