"""The entropy of the student's next-token distribution, for a bonus on it."""

import jax
import jax.numpy as jnp


def entropy(logits_RmV: jax.Array, targets_Rm: jax.Array, signal: None = None) -> jax.Array:
  """Computes -sum_v p_v log p_v of each position in nats, p the softmax of the logits.

  With a negative weight it is the confidence penalty of Pereyra et al. 2017 (equation 3).
  Float32 [R, m].
  """
  del targets_Rm, signal
  log_probability = jax.nn.log_softmax(logits_RmV, axis=-1)
  return -jnp.sum(jnp.exp(log_probability) * log_probability, axis=-1)
