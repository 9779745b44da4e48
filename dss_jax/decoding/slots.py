"""The slots of an engine on the devices: rows at different positions, decoded side by side."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from dss_jax.config.schema import T5Config
from dss_jax.decoding.decoder import (
  KeyValue,
  cache_constraint,
  decode_step,
  empty_caches,
  heads_first,
)
from dss_jax.decoding.greedy import most_likely
from dss_jax.decoding.sampling import (
  Sampling,
  next_tokens,
  top_log_probabilities,
  wanted_log_probabilities,
)
from dss_jax.decoding.weights import DecodingWeights


@struct.dataclass
class Slots:
  """A row in each slot, or none.

  Attributes:
    step: the number of steps that the caches have seen.
    live_B: whether the slot has a row that has not ended.
    tokens_B: the last token of each row.
    positions_B: the number of tokens decoded so far.
    limits_B: the number of tokens at which the row ends.
    identities_B2: see next_tokens.
    sampling: how each row's tokens are chosen.
    source_mask_BL: which of the row's cross-attention keys are real.
    caches, crosses: keys and values of each layer, [B, H, T, K] and [B, H, L, K].
  """

  step: jax.Array
  live_B: jax.Array
  tokens_B: jax.Array
  positions_B: jax.Array
  limits_B: jax.Array
  identities_B2: jax.Array
  sampling: Sampling
  source_mask_BL: jax.Array
  caches: list[KeyValue]
  crosses: list[KeyValue]

  @property
  def cache_length(self) -> int:
    return self.caches[0][0].shape[2]

  @property
  def source_length(self) -> int:
    return self.source_mask_BL.shape[1]


@struct.dataclass
class Admission:
  """Rows that enter; A of them at a time.

  Attributes:
    slots_A: their slots; a number past the last slot is no row.
    sources_AL: their positions in the flattened encoder output.
    masks_AL: which of these are real.
    starts_A: the token from which each starts.
  """

  slots_A: np.ndarray
  sources_AL: np.ndarray
  masks_AL: np.ndarray
  starts_A: np.ndarray
  limits_A: np.ndarray
  identities_A2: np.ndarray
  sampling: Sampling


@struct.dataclass
class Decoded:
  """What some steps decoded.

  Attributes:
    tokens_SB: each slot's tokens, from the first step on; the rest is undefined.
    log_probabilities_SB: of these tokens; zeros unless asked for.
    top_tokens_SBJ: the most likely tokens at each step, the most likely one first.
    top_log_probabilities_SBJ: of these.
    counts_B: the number of each slot's new tokens.
    live_B: whether the slot's row goes on.
  """

  tokens_SB: jax.Array
  log_probabilities_SB: jax.Array
  top_tokens_SBJ: jax.Array
  top_log_probabilities_SBJ: jax.Array
  counts_B: jax.Array
  live_B: jax.Array


def empty_slots(config: T5Config, rows: int, cache_length: int, source_length: int) -> Slots:
  numbers = jnp.zeros((rows,), jnp.int32)
  return _placed(
    Slots(
      step=jnp.zeros((), jnp.int32),
      live_B=numbers > 0,
      tokens_B=numbers,
      positions_B=numbers,
      limits_B=numbers,
      identities_B2=jnp.zeros((rows, 2), jnp.uint32),
      sampling=jax.tree.map(jnp.asarray, Sampling.of([], rows)),
      source_mask_BL=jnp.zeros((rows, source_length), bool),
      caches=empty_caches(config, rows, cache_length),
      crosses=empty_caches(config, rows, source_length),
    )
  )


def admit(slots: Slots, encoded: list[jax.Array], admission: Admission) -> Slots:
  """Puts rows into slots; what their caches hold is not theirs, and so is not attended to.

  Args:
    encoded: of each layer, the keys and values of packed inputs, [R, W, 2, H, K].
  """

  def enter(all_slots: jax.Array, rows: jax.Array | np.ndarray | int) -> jax.Array:
    return all_slots.at[admission.slots_A].set(rows, mode="drop")

  own = [x.reshape(-1, *x.shape[2:])[admission.sources_AL] for x in encoded]
  return _placed(
    dataclasses.replace(
      slots,
      live_B=enter(slots.live_B, True),
      tokens_B=enter(slots.tokens_B, admission.starts_A),
      positions_B=enter(slots.positions_B, 0),
      limits_B=enter(slots.limits_B, admission.limits_A),
      identities_B2=enter(slots.identities_B2, admission.identities_A2),
      sampling=jax.tree.map(enter, slots.sampling, admission.sampling),
      source_mask_BL=enter(slots.source_mask_BL, admission.masks_AL),
      crosses=jax.tree.map(enter, slots.crosses, heads_first(own)),
    )
  )


def lengthened(slots: Slots, *, cache_length: int, source_length: int) -> Slots:
  """Returns the slots with longer caches, or longer cross-attention."""
  # Of each place in the new ring: the last step that is written there, and its place in the old.
  last = slots.step - 1
  steps_T = last - (last - jnp.arange(cache_length)) % cache_length

  def of_ring(cache: jax.Array) -> jax.Array:
    if cache.shape[2] == cache_length:
      return cache
    return jnp.take(cache, steps_T % cache.shape[2], axis=2)

  def padded(x: jax.Array, axis: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, source_length - x.shape[axis])
    return jnp.pad(x, widths)

  return _placed(
    dataclasses.replace(
      slots,
      source_mask_BL=padded(slots.source_mask_BL, 1),
      caches=jax.tree.map(of_ring, slots.caches),
      crosses=jax.tree.map(lambda x: padded(x, 2), slots.crosses),
    )
  )


def gathered(slots: Slots, order_B: jax.Array, is_row_B: jax.Array) -> Slots:
  """Moves rows to fewer slots.

  Args:
    order_B: the present slot of each new one.
    is_row_B: whether there is one.
  """
  moved = jax.tree.map(lambda x: x[order_B] if x.ndim else x, slots)
  return _placed(dataclasses.replace(moved, live_B=moved.live_B & is_row_B))


def advance(
  weights: DecodingWeights,
  slots: Slots,
  keep_B: jax.Array,
  most_steps: jax.Array,
  most_ends: jax.Array,
  *,
  model: T5Config,
  eos_id: int,
  steps: int,
  is_plain: bool = False,
  top_count: int = 0,
) -> tuple[Slots, Decoded]:
  """Decodes a token of each live row, until none is left or enough have ended.

  Args:
    keep_B: False ends the row in a slot before the first step.
    most_steps: the largest number of steps, at most `steps`.
    most_ends: the number of ended rows after which it returns.
    is_plain: whether all rows take the most likely tokens and want no log-probabilities, which
      takes a tenth less time.
    top_count: how many of the most likely tokens are returned.
  """
  rows = len(slots.live_B)
  slots = dataclasses.replace(slots, live_B=slots.live_B & keep_B)
  before = slots
  # A row that has left asks for nothing.
  sampling = dataclasses.replace(
    slots.sampling,
    temperatures_B=jnp.where(slots.live_B, slots.sampling.temperatures_B, 0.0),
    wants_logs_B=slots.live_B & slots.sampling.wants_logs_B,
  )

  def goes_on(state) -> jax.Array:
    number, slots, _ = state
    ends = jnp.sum(before.live_B & ~slots.live_B)
    return (number < most_steps) & jnp.any(slots.live_B) & (ends < most_ends)

  def one_step(state):
    number, slots, written = state
    # An empty slot stays at position 0 and attends to itself alone.
    logits_VB, caches = decode_step(
      weights,
      model,
      slots.tokens_B,
      slots.step,
      slots.positions_B,
      slots.caches,
      slots.crosses,
      slots.source_mask_BL,
    )
    if is_plain:
      tokens_B = most_likely(logits_VB)
    else:
      tokens_B = next_tokens(logits_VB, sampling, slots.identities_B2, slots.positions_B)
    new = {"tokens": tokens_B}
    if not is_plain:
      new["logs"] = wanted_log_probabilities(logits_VB, tokens_B, sampling)
    if top_count:
      new["top_tokens"], new["top_logs"] = top_log_probabilities(logits_VB, top_count)
    changed = {
      name: jax.lax.dynamic_update_index_in_dim(written[name], values, number, axis=0)
      for name, values in new.items()
    }
    positions_B = slots.positions_B + slots.live_B
    slots = dataclasses.replace(
      slots,
      step=slots.step + 1,
      live_B=slots.live_B & (tokens_B != eos_id) & (positions_B < slots.limits_B),
      tokens_B=tokens_B,
      positions_B=positions_B,
      caches=caches,
    )
    return number + 1, slots, {**written, **changed}

  number = jnp.zeros((), jnp.int32)
  written = {
    "tokens": jnp.zeros((steps, rows), jnp.int32),
    "logs": jnp.zeros((steps, rows), jnp.float32),
    "top_tokens": jnp.zeros((steps, rows, top_count), jnp.int32),
    "top_logs": jnp.zeros((steps, rows, top_count), jnp.float32),
  }
  _, slots, written = jax.lax.while_loop(goes_on, one_step, (number, slots, written))
  decoded = Decoded(
    tokens_SB=written["tokens"],
    log_probabilities_SB=written["logs"],
    top_tokens_SBJ=written["top_tokens"],
    top_log_probabilities_SBJ=written["top_logs"],
    counts_B=slots.positions_B - before.positions_B,
    live_B=slots.live_B,
  )
  return _placed(slots), decoded


def _placed(slots: Slots) -> Slots:
  """Places rows on the data axis and heads on the model axis."""

  def by_rows(x: jax.Array) -> jax.Array:
    return nn.with_logical_constraint(x, ("batch", *[None] * (x.ndim - 1))) if x.ndim else x

  placed = jax.tree.map(by_rows, dataclasses.replace(slots, caches=[], crosses=[]))
  return dataclasses.replace(
    placed,
    caches=jax.tree.map(cache_constraint, slots.caches),
    crosses=jax.tree.map(cache_constraint, slots.crosses),
  )
