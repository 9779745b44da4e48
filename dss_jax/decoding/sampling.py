"""The choice of the next token: the most likely one, or one drawn at a temperature."""

import jax
import jax.numpy as jnp

from dss_jax.config.schema import DecodingConfig
from dss_jax.decoding.greedy import most_likely


def next_tokens(
  logits_VB: jax.Array, config: DecodingConfig, identities_B2: jax.Array, positions_B: jax.Array
) -> jax.Array:
  """Returns each row's next token, int32 [B].

  A row's random numbers follow from the seed, its identity and its position alone, not from its
  place among the rows.

  Args:
    identities_B2: two numbers that tell a row from others, uint32.
  """
  if config.temperature == 0:
    return most_likely(logits_VB)

  def key(identity_2, position):
    key = jax.random.key(config.seed)
    for number in (*identity_2, position):
      key = jax.random.fold_in(key, number)
    return key

  logits_BV = kept(logits_VB.T / config.temperature, top_k=config.top_k, top_p=config.top_p)
  keys_B = jax.vmap(key)(identities_B2, positions_B)
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def kept(logits_BV: jax.Array, *, top_k: int | None, top_p: float) -> jax.Array:
  """Returns the logits with those of excluded tokens at minus infinity.

  The top_k most likely tokens stay; of these, in falling order, those before which the
  probabilities sum up to less than top_p (Holtzman et al. 2020, section 3.1). Tokens that are as
  likely as the last one stay, too.
  """
  if top_k is not None and top_k < logits_BV.shape[1]:
    least_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  if top_p < 1:
    falling_BV = -jnp.sort(-logits_BV, axis=1)
    probabilities_BV = jax.nn.softmax(falling_BV, axis=1)
    before_BV = jnp.cumsum(probabilities_BV, axis=1) - probabilities_BV
    least_B1 = jnp.min(jnp.where(before_BV < top_p, falling_BV, jnp.inf), axis=1, keepdims=True)
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  return logits_BV


def log_probabilities(logits_VB: jax.Array, tokens_B: jax.Array) -> jax.Array:
  """Returns the log-probability of each row's token by the model itself, at temperature 1."""
  chosen_B = jnp.take_along_axis(logits_VB, tokens_B[None], axis=0)[0]
  return chosen_B - jax.nn.logsumexp(logits_VB, axis=0)
