"""DataConfig.shared_encoder: a row's input is encoded once for its label and its rationale.

Step by step as the paper has it encodes a row twice, as `predict: x` and as `explain: x`. With a
shared encoder the one input `predict: x` is encoded, and the decoder is told what to write by its
start token: the pad token for the label, as T5 has it, and the end token for the rationale.
"""

from dss_jax.config.schema import LABEL, RATIONALE, TARGET_KINDS, DataConfig, RunConfig
from dss_jax.data.sources import EXPLAIN_PREFIX, PREDICT_PREFIX
from dss_jax.data.vocabularies import Vocabulary
from dss_jax.errors import UserError


def prefixes(config: DataConfig) -> tuple[str, str]:
  """Returns the prefix of the input for the label and for the rationale."""
  return PREDICT_PREFIX, PREDICT_PREFIX if config.shared_encoder else EXPLAIN_PREFIX


def start_tokens(config: DataConfig, vocabulary: Vocabulary) -> tuple[int, int]:
  """Returns the decoder's first input token for the label and for the rationale."""
  pad, eos = vocabulary.pad_id, vocabulary.eos_id
  return pad, eos if config.shared_encoder else pad


def shared_starts(config: DataConfig, vocabulary: Vocabulary) -> tuple[int, int] | None:
  """Returns start_tokens, as PackedBatches takes them; None without a shared encoder."""
  return start_tokens(config, vocabulary) if config.shared_encoder else None


def check_shared_encoder(config: RunConfig) -> None:
  """Raises UserError if there is nothing to share, or if the student is to sample targets."""
  if not config.data.shared_encoder:
    return
  alpha = config.loss.alpha
  if alpha in (0.0, 1.0):
    raise UserError(
      f"--shared-encoder: with --alpha {alpha:g} a row has its "
      f"{TARGET_KINDS[LABEL if alpha else RATIONALE]} alone, so there is nothing to share; leave "
      "it out, or give an --alpha between 0 and 1"
    )
  if config.on_policy.share:
    raise UserError(
      "--shared-encoder: --kind on-policy encodes an input for each target that it samples; leave "
      "out one of the two"
    )
