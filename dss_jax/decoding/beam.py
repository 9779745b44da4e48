"""Beam search with a key-value cache, with T5X's scores and stopping rule."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dss_jax.config.schema import T5Config
from dss_jax.decoding.decoder import KeyValue, decode_step, empty_caches, encode, heads_first
from dss_jax.decoding.weights import DecodingWeights, decoding_weights
from dss_jax.model.layer_stacks import unrolled_config

# Lower than any sequence's log-probability; excludes a beam from being chosen.
_NEVER = -1.0e7


class _Search(NamedTuple):
  """The state of a search; beams are sorted, best first. S beams, T tokens to decode."""

  step: jax.Array
  live_BS: jax.Array  # log-probabilities of the live beams
  live_ids_BST: jax.Array
  finished_BS: jax.Array  # scores of the finished beams
  finished_ids_BST: jax.Array
  ended_BS: jax.Array  # whether there is a finished beam here
  caches: list[KeyValue]  # rows B * S


def length_penalty(tokens: jax.Array | int, alpha: float) -> jax.Array:
  """Computes ((5 + tokens) / 6)^alpha, which divides scores (Wu et al. 2016, section 7)."""
  return jnp.power((5.0 + tokens) / 6.0, alpha)


def beam_search(
  params: Any,
  config: T5Config,
  encoder_input_tokens_BL: jax.Array,
  *,
  max_decode_tokens: int,
  eos_id: int,
  pad_id: int,
  beams: int = 4,
  alpha: float = 0.6,
  start_tokens_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Searches for the best sequences of each row; returns them, best first, with their scores.

  A score is the log-probability over length_penalty of the number of tokens, end token included.
  Of the 2 * beams most likely continuations, those that end compete for the finished beams, and
  the best others stay live. The search ends at full length, or when every finished beam scores
  better than the best live one could at full length. A row without a finished beam returns its
  live beams with their log-probabilities. This is T5X's search, which returns the beams in the
  opposite order.

  Args:
    params: the network's parameters, or its DecodingWeights.
    encoder_input_tokens_BL: ids; a row of padding only decodes to padding.
    start_tokens_B: the token from which each row starts; None for the pad token.

  Returns:
    Ids, int32 [B, beams, max_decode_tokens], padded after the end token, and float32 [B, beams].
    An empty beam is all padding with the score -1e7.
  """
  if not isinstance(params, DecodingWeights):
    params = decoding_weights(params, config)
  config = unrolled_config(config)
  rows = encoder_input_tokens_BL.shape[0]
  source_mask_BL = encoder_input_tokens_BL != pad_id
  empty_B = ~jnp.any(source_mask_BL, axis=1)
  crosses = heads_first(
    encode(params, config, encoder_input_tokens_BL, source_mask_BL.astype(jnp.int32))
  )
  crosses = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), crosses)
  source_mask = jnp.repeat(source_mask_BL, beams, axis=0)
  starts = pad_id if start_tokens_B is None else start_tokens_B[:, None, None]
  at_full_length = length_penalty(max_decode_tokens + 1, alpha)

  def unfinished(search: _Search) -> jax.Array:
    best_B = search.live_BS[:, 0] / at_full_length
    settled_B = jnp.all(search.ended_BS, axis=1) & (jnp.min(search.finished_BS, axis=1) > best_B)
    return (search.step < max_decode_tokens) & ~jnp.all(settled_B | empty_B)

  def advance(search: _Search) -> _Search:
    last = jax.lax.dynamic_index_in_dim(search.live_ids_BST, search.step - 1, 2, keepdims=True)
    last = jnp.where(search.step == 0, starts, last)
    logits, caches = decode_step(
      params,
      config,
      last.reshape(rows * beams),
      search.step,
      jnp.full((rows * beams,), search.step),
      search.caches,
      crosses,
      source_mask,
    )
    vocab_size = len(logits)
    logits_BSV = jax.nn.log_softmax(logits.T).reshape(rows, beams, vocab_size)
    sums = (search.live_BS[:, :, None] + logits_BSV).reshape(rows, -1)
    # Twice as many, so that `beams` live ones are left even if as many end at once.
    sums, chosen = jax.lax.top_k(sums, 2 * beams)
    parents, tokens = chosen // vocab_size, chosen % vocab_size
    ids = _of_beams(search.live_ids_BST, parents)
    ids = jax.lax.dynamic_update_slice_in_dim(
      ids, tokens[:, :, None].astype(jnp.int32), search.step, axis=2
    )
    ends = tokens == eos_id

    live, kept = jax.lax.top_k(sums + ends * _NEVER, beams)
    kept_parents = jnp.take_along_axis(parents, kept, axis=1)

    scores = sums / length_penalty(search.step + 1, alpha) + ~ends * _NEVER
    scores = jnp.concatenate([search.finished_BS, scores], axis=1)
    finished, places = jax.lax.top_k(scores, beams)
    all_ids = jnp.concatenate([search.finished_ids_BST, ids], axis=1)
    all_ends = jnp.concatenate([search.ended_BS, ends], axis=1)

    def follow(cache: jax.Array) -> jax.Array:
      by_beam = cache.reshape(rows, beams, *cache.shape[1:])
      return _of_beams(by_beam, kept_parents).reshape(cache.shape)

    return _Search(
      step=search.step + 1,
      live_BS=live,
      live_ids_BST=_of_beams(ids, kept),
      finished_BS=finished,
      finished_ids_BST=_of_beams(all_ids, places),
      ended_BS=jnp.take_along_axis(all_ends, places, axis=1),
      caches=jax.tree.map(follow, caches),
    )

  no_ids = jnp.full((rows, beams, max_decode_tokens), pad_id, jnp.int32)
  never_BS = jnp.full((rows, beams), _NEVER, jnp.float32)
  search = jax.lax.while_loop(
    unfinished,
    advance,
    _Search(
      step=jnp.zeros((), jnp.int32),
      # Only one live beam at first: the others would be copies of it.
      live_BS=never_BS.at[:, 0].set(0.0),
      live_ids_BST=no_ids,
      finished_BS=never_BS,
      finished_ids_BST=no_ids,
      ended_BS=jnp.zeros((rows, beams), bool),
      caches=empty_caches(config, rows * beams, max_decode_tokens),
    ),
  )
  any_ended_B = jnp.any(search.ended_BS, axis=1)
  ids = jnp.where(any_ended_B[:, None, None], search.finished_ids_BST, search.live_ids_BST)
  ids = jnp.where(empty_B[:, None, None], pad_id, ids)
  scores = jnp.where(any_ended_B[:, None], search.finished_BS, search.live_BS)
  return ids, scores


def _of_beams(values: jax.Array, beams_BS: jax.Array) -> jax.Array:
  """Gathers beams of each row, [B, beams, ...], by number."""
  index = beams_BS.reshape(*beams_BS.shape, *[1] * (values.ndim - 2))
  return jnp.take_along_axis(values, index, axis=1)
