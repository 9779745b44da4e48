"""Response-based distillation: divergences between next-token distributions."""

import dataclasses

import jax
import jax.numpy as jnp

from dss_jax.config.schema import ResponseConfig
from dss_jax.losses.signals import NextTokens, SampledLogits


@dataclasses.dataclass(frozen=True)
class ResponseLoss:
  """A divergence of the student's next token from the teacher's, at each position.

  With q and p the teacher's and the student's softmax(logits / T):

  forward: T^2 KL(q || p), the usual one (Hinton et al. 2015, section 2).
  reverse: T^2 KL(p || q), which seeks a mode (Gu et al. 2024).
  skewed-forward: T^2 KL(q || s q + (1 - s) p); skewed-reverse: T^2 KL(p || (1 - s) q + s p)
    (Ko et al. 2024, DistiLLM), s the skew: finite where one of them is zero.
  jensen-shannon: T^2 (b KL(q || m) + (1 - b) KL(p || m)), m = b q + (1 - b) p, b the mixture
    (Agarwal et al. 2024, GKD).

  T^2 keeps the gradient's size as T changes. Each is zero where both distributions are equal.
  """

  config: ResponseConfig

  def __call__(
    self, logits_RmV: jax.Array, targets_Rm: jax.Array, signal: NextTokens | SampledLogits
  ) -> jax.Array:
    """Computes the divergence at each position, float32 [R, m]; of draws, an estimate of it."""
    del targets_Rm
    config = self.config
    if isinstance(signal, SampledLogits):
      # Of draws, no other divergence can be estimated; a run with one is refused at its start.
      assert config.divergence == "forward"
      return config.temperature**2 * signal.forward_kl(logits_RmV, config.temperature)
    teacher, student = signal.outcomes(logits_RmV, config.temperature)
    match config.divergence:
      case "forward":
        divergence = kl(teacher, student)
      case "reverse":
        divergence = kl(student, teacher)
      case "skewed-forward":
        divergence = kl(teacher, _mixed(teacher, student, config.skew))
      case "skewed-reverse":
        divergence = kl(student, _mixed(student, teacher, config.skew))
      case "jensen-shannon":
        share = config.mixture
        mixed = _mixed(teacher, student, share)
        divergence = share * kl(teacher, mixed) + (1.0 - share) * kl(student, mixed)
    return config.temperature**2 * divergence


def kl(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """Computes KL(q || p) = sum_o q_o (log q_o - log p_o) over the last axis."""
  return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def _mixed(log_one: jax.Array, log_other: jax.Array, share: float) -> jax.Array:
  """Computes log(share * one + (1 - share) * other)."""
  if share in (0.0, 1.0):
    return log_one if share else log_other
  return jnp.logaddexp(log_one + jnp.log(share), log_other + jnp.log1p(-share))
