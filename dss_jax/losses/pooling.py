"""Means of states over the sequences of a whole batch, wherever their rows lie."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dss_jax.config.schema import TARGET_KINDS
from dss_jax.losses.signals import NetworkOutputs
from dss_jax.model.states import normed_output


def pooled(
  network: NetworkOutputs, batch: Mapping[str, jax.Array], stack: str, layer: int, examples: int
) -> jax.Array:
  """Computes the mean of a layer's normed states over each sequence, float32 [N, D].

  The sequences of all rows count, on all devices. N is `examples` times the target kinds: that of
  an example's kind has the number kinds * example + kind. Where there is none the mean is 0.

  Args:
    batch: `<stack>_sequence_ids`, int32 [R, L]: 1 + that number, 0 for padding.
  """
  assert network.config is not None
  state_RLD = network.states(stack)[layer]
  normed_RLD = normed_output(network.params, network.config, stack, state_RLD)
  ids_RL = batch[f"{stack}_sequence_ids"]
  sums_ND = _summed(normed_RLD.astype(jnp.float32), ids_RL, examples)
  return sums_ND / jnp.maximum(_lengths(ids_RL, examples), 1.0)[:, None]


def present(batch: Mapping[str, jax.Array], stack: str, examples: int) -> jax.Array:
  """Returns which sequences the batch has, bool [N]."""
  return _lengths(batch[f"{stack}_sequence_ids"], examples) > 0


def _lengths(ids_RL: jax.Array, examples: int) -> jax.Array:
  return _summed(jnp.ones(ids_RL.shape, jnp.float32), ids_RL, examples)


def _summed(values: jax.Array, ids_RL: jax.Array, examples: int) -> jax.Array:
  """Sums the values at the positions of each sequence; those of padding fall into number 0."""
  count = 1 + examples * len(TARGET_KINDS)
  flat = values.reshape(-1, *values.shape[2:])
  return jax.ops.segment_sum(flat, ids_RL.reshape(-1), num_segments=count)[1:]
