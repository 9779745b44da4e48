"""Matrix-product FLOPs of a forward pass and a step, counted from the architecture."""

from typing import NamedTuple

from dss_jax.config.schema import T5Config


class ForwardFlops(NamedTuple):
  """Floating-point operations of a forward pass; a training step takes three times as many.

  Attributes:
    input_token: per input token, without attention logits and weighted values, with the keys
      and values of cross-attention.
    target_token: per target token, with its logits over the vocabulary.
    encoder_pair: per (query, key) pair in the encoder's self-attentions.
    decoder_pair: per pair in the decoder's self-attentions.
    cross_pair: per pair in the cross-attentions.
  """

  input_token: float
  target_token: float
  encoder_pair: float
  decoder_pair: float
  cross_pair: float

  def of_rows(self, rows: int, input_tokens: int, target_tokens: int) -> float:
    """Returns the FLOPs of packed rows, padding included."""
    return rows * (
      self.input_token * input_tokens
      + self.target_token * target_tokens
      + self.encoder_pair * input_tokens**2
      + self.decoder_pair * target_tokens**2
      + self.cross_pair * input_tokens * target_tokens
    )


def forward_flops(config: T5Config) -> ForwardFlops:
  """Returns the FLOPs of a student; a multiply-add counts as two."""
  joined = config.num_heads * config.head_dim
  attention = 4 * config.emb_dim * joined  # query, key, value and out
  mlp = (len(config.mlp_activations) + 1) * config.emb_dim * config.mlp_dim
  keys_and_values = 2 * config.emb_dim * joined
  encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
  logits = config.emb_dim * (config.vocab_size or 0)
  return ForwardFlops(
    input_token=2.0 * (encoder * (attention + mlp) + decoder * keys_and_values),
    target_token=2.0 * (decoder * (2 * attention - keys_and_values + mlp) + logits),
    encoder_pair=4.0 * encoder * joined,
    decoder_pair=4.0 * decoder * joined,
    cross_pair=4.0 * decoder * joined,
  )


class StepFlops(NamedTuple):
  """Floating-point operations of a training step, all devices together.

  Attributes:
    model: forward and backward pass, three times a forward pass, and a teacher's forward pass; MFU
      is computed from it.
    recomputed: by rematerialisation.
  """

  model: float
  recomputed: float

  @property
  def executed(self) -> float:
    return self.model + self.recomputed


def step_flops(
  config: T5Config,
  rows: int,
  input_tokens: int,
  target_tokens: int,
  teacher: T5Config | None = None,
) -> StepFlops:
  """Returns the FLOPs of a step over packed rows.

  With remat "full" the backward pass computes each layer again, but not the logits; with
  "minimal" the attention's pairs alone.
  """
  costs = forward_flops(config)
  forward = costs.of_rows(rows, input_tokens, target_tokens)
  logits = 2.0 * config.emb_dim * (config.vocab_size or 0)
  layers_alone = costs._replace(target_token=costs.target_token - logits)
  pairs_alone = costs._replace(input_token=0.0, target_token=0.0)
  again = {
    "none": 0.0,
    "minimal": pairs_alone.of_rows(rows, input_tokens, target_tokens),
    "full": layers_alone.of_rows(rows, input_tokens, target_tokens),
  }[config.remat]
  of_teacher = 0.0
  if teacher is not None:
    of_teacher = forward_flops(teacher).of_rows(rows, input_tokens, target_tokens)
  return StepFlops(model=3.0 * forward + of_teacher, recomputed=again)
