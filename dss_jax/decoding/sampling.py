"""The choice of the next token: the most likely one, or one drawn at a temperature."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from dss_jax.config.schema import DecodingConfig
from dss_jax.decoding.greedy import most_likely

Rows = jax.Array | np.ndarray


@struct.dataclass
class Sampling:
  """How each row's tokens are chosen: the fields of DecodingConfig, an array each.

  Attributes:
    temperatures_B: float32; 0 takes the most likely token.
    top_ks_B: int32; 0 keeps all tokens.
    top_ps_B: float32.
    seeds_B: uint32.
    wants_logs_B: whether log-probabilities are wanted, bool.
  """

  temperatures_B: Rows
  top_ks_B: Rows
  top_ps_B: Rows
  seeds_B: Rows
  wants_logs_B: Rows

  @classmethod
  def of(cls, configs: Sequence[DecodingConfig], rows: int) -> "Sampling":
    """Returns the settings of the first rows; the others take the most likely token."""

    def filled(values: Sequence[Any], dtype: Any) -> np.ndarray:
      array = np.zeros(rows, dtype)
      array[: len(values)] = values
      return array

    return cls(
      filled([config.temperature for config in configs], np.float32),
      filled([config.top_k or 0 for config in configs], np.int32),
      filled([config.top_p for config in configs], np.float32),
      filled([config.seed for config in configs], np.uint32),
      filled([config.log_probabilities for config in configs], bool),
    )


def next_tokens(
  logits_VB: jax.Array, sampling: Sampling, identities_BI: jax.Array, positions_B: jax.Array
) -> jax.Array:
  """Returns each row's next token, int32 [B].

  A row's random numbers follow from its seed, its identity and its position alone, not from its
  place among the rows.

  Args:
    identities_BI: numbers that tell a row from others, uint32; an engine has two.
  """
  temperatures_B = jnp.asarray(sampling.temperatures_B)
  is_drawn_B = temperatures_B > 0
  likeliest_B = most_likely(logits_VB)

  def key(seed: Any, identity_I: jax.Array, position: jax.Array) -> jax.Array:
    key = jax.random.key(seed)
    for number in (*identity_I, position):
      key = jax.random.fold_in(key, number)
    return key

  def draw() -> jax.Array:
    divisors_B = jnp.where(is_drawn_B, temperatures_B, 1.0)
    logits_BV = kept(logits_VB.T / divisors_B[:, None], sampling.top_ks_B, sampling.top_ps_B)
    keys_B = jax.vmap(key)(sampling.seeds_B, identities_BI, positions_B)
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)
    return jnp.where(is_drawn_B, drawn_B, likeliest_B)

  # Drawing takes longer than a step of a small student.
  return jax.lax.cond(jnp.any(is_drawn_B), draw, lambda: likeliest_B)


def kept(logits_BV: jax.Array, top_ks_B: Rows, top_ps_B: Rows) -> jax.Array:
  """Returns the logits with those of excluded tokens at minus infinity.

  The top_k most likely tokens stay; of these, in falling order, those before which the
  probabilities sum up to less than top_p (Holtzman et al. 2020, section 3.1). Tokens that are as
  likely as the last one stay, too.
  """
  top_ks_B, top_ps_B = jnp.asarray(top_ks_B), jnp.asarray(top_ps_B)
  is_cut_B = (top_ks_B > 0) | (top_ps_B < 1)

  def cut() -> jax.Array:
    vocabulary = logits_BV.shape[1]
    falling_BV = -jnp.sort(-logits_BV, axis=1)
    counts_B1 = jnp.where(top_ks_B > 0, top_ks_B, vocabulary)[:, None]
    falling_BV = jnp.where(jnp.arange(vocabulary) < counts_B1, falling_BV, -jnp.inf)
    probabilities_BV = jax.nn.softmax(falling_BV, axis=1)
    before_BV = jnp.cumsum(probabilities_BV, axis=1) - probabilities_BV
    stays_BV = (before_BV < top_ps_B[:, None]) | (top_ps_B[:, None] >= 1)
    stays_BV &= jnp.isfinite(falling_BV)
    least_B1 = jnp.min(jnp.where(stays_BV, falling_BV, jnp.inf), axis=1, keepdims=True)
    return jnp.where((logits_BV < least_B1) & is_cut_B[:, None], -jnp.inf, logits_BV)

  return jax.lax.cond(jnp.any(is_cut_B), cut, lambda: logits_BV)


def log_probabilities(logits_VB: jax.Array, tokens_B: jax.Array) -> jax.Array:
  """Returns the log-probability of each row's token by the model itself, at temperature 1."""
  chosen_B = jnp.take_along_axis(logits_VB, tokens_B[None], axis=0)[0]
  return chosen_B - jax.nn.logsumexp(logits_VB, axis=0)


def top_log_probabilities(logits_VB: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """Returns each row's most likely tokens, int32 [B, J], and log_probabilities of them.

  The most likely one is first, the smaller of equally likely ids.
  """
  logits_BJ, tokens_BJ = jax.lax.top_k(logits_VB.T, count)
  return tokens_BJ, logits_BJ - jax.nn.logsumexp(logits_VB, axis=0)[:, None]


def wanted_log_probabilities(
  logits_VB: jax.Array, tokens_B: jax.Array, sampling: Sampling
) -> jax.Array:
  """Returns log_probabilities if any row wants them, else zeros."""
  return jax.lax.cond(
    jnp.any(sampling.wants_logs_B),
    lambda: log_probabilities(logits_VB, tokens_B),
    lambda: jnp.zeros(tokens_B.shape, jnp.float32),
  )
