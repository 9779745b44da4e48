"""Targets sampled from a network that is being trained, reproducibly."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dss_jax.config.schema import DecodingConfig, T5Config
from dss_jax.decoding.decoder import decode_batch
from dss_jax.decoding.sampling import Sampling, next_tokens
from dss_jax.decoding.weights import decoding_weights
from dss_jax.parallel.sharding import logical_rules

# Tells the random bits of samples from a run's others: 1 is initial weights, 2 dropout.
_STREAM = 3


def sample_targets(
  params: Any,
  encoder_input_tokens_BL: jax.Array,
  seed: jax.Array,
  step: jax.Array,
  examples_B: jax.Array,
  kinds_B: jax.Array,
  *,
  config: T5Config,
  decoding: DecodingConfig,
  max_tokens: int,
  eos_id: int,
  pad_id: int,
) -> jax.Array:
  """Samples a target for each input, int32 [B, max_tokens].

  A target ends with its end token, and is padded after it; one that is cut off has no end token.
  Its random bits are a function of (seed, step, example, kind) alone, so that it does not depend
  on the other rows, their order or the devices, but for rounding.

  Args:
    params: the network's parameters.
    encoder_input_tokens_BL: int32; a row of padding only gets a target of padding only.
    seed, step: uint32 scalars.
    examples_B, kinds_B: what tells the rows of a step from each other, uint32.
    decoding: its temperature, top_k and top_p are used.
  """
  rows = len(examples_B)
  encoder_input_tokens_BL = nn.with_logical_constraint(encoder_input_tokens_BL, ("batch", None))
  sampling = dataclasses.replace(
    Sampling.of([decoding] * rows, rows), seeds_B=jnp.broadcast_to(seed, rows)
  )
  run_BI = jnp.broadcast_to(jnp.stack([jnp.uint32(_STREAM), step]), (rows, 2))
  identities_BI = jnp.concatenate([run_BI, jnp.stack([examples_B, kinds_B], axis=1)], axis=1)
  return decode_batch(
    decoding_weights(params, config),
    config,
    encoder_input_tokens_BL,
    lambda logits_VB, position: next_tokens(
      logits_VB, sampling, identities_BI, jnp.full(rows, position)
    ),
    max_decode_tokens=max_tokens,
    eos_id=eos_id,
    pad_id=pad_id,
  )


class TargetSampler:
  """sample_targets, compiled once for each shape of inputs, on a mesh."""

  def __init__(
    self,
    config: T5Config,
    mesh: Mesh,
    *,
    decoding: DecodingConfig,
    seed: int,
    max_tokens: int,
    eos_id: int,
    pad_id: int,
  ):
    self._mesh = mesh
    self._rules = logical_rules(config, mesh)
    self._seed = np.uint32(seed)
    # Inputs and targets are small, and every host has them all.
    self._sample = jax.jit(
      functools.partial(
        sample_targets,
        config=config,
        decoding=decoding,
        max_tokens=max_tokens,
        eos_id=eos_id,
        pad_id=pad_id,
      ),
      out_shardings=NamedSharding(mesh, PartitionSpec()),
    )

  def __call__(
    self,
    params: Any,
    encoder_input_tokens_BL: np.ndarray,
    *,
    step: int,
    examples_B: np.ndarray,
    kinds_B: np.ndarray,
  ) -> jax.Array:
    """Samples a target for each input, int32 [B, max_tokens], replicated over the mesh.

    Args:
      params: on the mesh.
      encoder_input_tokens_BL: the same in every process; the data axis divides B.
    """
    with jax.set_mesh(self._mesh), nn.logical_axis_rules(self._rules):
      return self._sample(
        params,
        encoder_input_tokens_BL,
        self._seed,
        np.uint32(step),
        examples_B.astype(np.uint32),
        kinds_B.astype(np.uint32),
      )
