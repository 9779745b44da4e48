"""The objective: named terms with weights, computed in one pass over the logits.

Step, loop, evaluation and metrics see its sums as `dict[str, LossSum]` and know no term by name.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dss_jax.config.schema import TARGET_KINDS, LossConfig
from dss_jax.errors import UserError
from dss_jax.losses.base import LossSum, Term, TokenLoss
from dss_jax.losses.cross_entropy import TokenLosses, cross_entropy
from dss_jax.losses.entropy import entropy
from dss_jax.losses.step_by_step import step_by_step_terms

# The token losses that LossConfig.extra_terms may name. A task file of one's own may add to them.
TOKEN_LOSSES: dict[str, TokenLoss] = {"entropy": entropy}

Sums = dict[str, LossSum]


@dataclasses.dataclass(frozen=True)
class Objective:
  """The total loss: sum over the terms of weight * mean over the term's tokens.

  Its sums are `<term>/loss` for each term, and `<kind>/accuracy` for "label" and "rationale",
  the correct next tokens, where a term has tokens of the kind.

  Attributes:
    label_smoothing, z_loss: of the cross-entropy, in training alone (see cross_entropy).
  """

  terms: tuple[Term, ...]
  label_smoothing: float = 0.0
  z_loss: float = 0.0

  @property
  def kinds(self) -> tuple[int, ...]:
    """The target kinds that the terms are computed on: no other sequences need be packed."""
    return tuple(sorted({kind for term in self.terms for kind in term.kinds}))

  @property
  def ranking_kind(self) -> str:
    """The name of the kind that checkpoints are ranked by: the label where it is trained."""
    return TARGET_KINDS[self.kinds[0]]

  def denominators(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the denominator of each term, by its name, for the *whole* batch."""
    return {term.name: term.denominator(batch) for term in self.terms}

  def loss(
    self,
    hidden_RMD: jax.Array,
    kernel_DV: jax.Array,
    batch: Mapping[str, jax.Array],
    denominators: Mapping[str, jax.Array],
    *,
    training: bool,
    shards: int = 1,
  ) -> tuple[jax.Array, TokenLosses]:
    """Computes the rows' part of the total loss, a float32 scalar, and each position's figures.

    The parts of microbatches and hosts add up to the loss of the whole batch, and so do the sums
    of the figures (see sums). All terms share one pass over the logits, which exist for a chunk
    of positions at a time.

    Args:
      hidden_RMD: the decoder's outputs.
      kernel_DV: the projection onto the vocabulary, float32.
      batch: `decoder_target_tokens`, `decoder_loss_weights` and `decoder_target_kinds`, [R, M].
      denominators: those of the whole batch.
      shards: the number of devices that the logits are sharded over.
    """
    return cross_entropy(
      hidden_RMD,
      kernel_DV,
      batch["decoder_target_tokens"],
      self.cross_entropy_weights(batch, denominators),
      extra=[
        (term.token_loss, term.token_weights(batch) * _factor(term, denominators))
        for term in self.terms
        if term.token_loss is not None
      ],
      label_smoothing=self.label_smoothing if training else 0.0,
      z_loss=self.z_loss if training else 0.0,
      shards=shards,
    )

  def cross_entropy_weights(
    self, batch: Mapping[str, jax.Array], denominators: Mapping[str, jax.Array]
  ) -> jax.Array:
    """Returns the factor of each token's cross-entropy in the total loss, float32 [R, M].

    It is weight / denominator, summed over the terms that the token belongs to.
    """
    factors_RM = jnp.zeros_like(batch["decoder_loss_weights"])
    for term in self.terms:
      if term.token_loss is None:
        with_term_RM = factors_RM + _factor(term, denominators)
        factors_RM = jnp.where(term.mask(batch), with_term_RM, factors_RM)
    return batch["decoder_loss_weights"] * factors_RM

  def sums(self, losses: TokenLosses, batch: Mapping[str, jax.Array]) -> Sums:
    """Returns the sums of the terms' losses and of the correct next tokens."""
    extra = iter(losses.extra)
    sums = {}
    for term in self.terms:
      loss_RM = losses.loss if term.token_loss is None else next(extra)
      sums[f"{term.name}/loss"] = _sum(loss_RM, term.token_weights(batch))
    for kind in self.kinds:
      of_kind = Term(TARGET_KINDS[kind], 0.0, (kind,))
      sums[f"{of_kind.name}/accuracy"] = _sum(losses.correct, of_kind.token_weights(batch))
    return sums

  def total(self, sums: Mapping[str, LossSum]) -> jax.Array:
    """Returns the total loss of summed batches, a float32 scalar."""
    total: jax.Array | float = 0.0
    for term in self.terms:
      total += term.weight * sums[f"{term.name}/loss"].mean()
    return jnp.asarray(total)


def make_objective(config: LossConfig) -> Objective:
  """Returns the objective of a run: the step-by-step terms and the extra ones.

  Raises:
    UserError: an extra term is unknown.
  """
  terms = step_by_step_terms(config.alpha)
  kinds = tuple(kind for term in terms for kind in term.kinds)
  for name, weight in config.extra_terms.items():
    if name not in TOKEN_LOSSES:
      raise UserError(
        f"LossConfig.extra_terms: there is no term {name!r}; choose from "
        f"{', '.join(sorted(TOKEN_LOSSES))}"
      )
    terms += (Term(name, weight, kinds, TOKEN_LOSSES[name]),)
  return Objective(terms, label_smoothing=config.label_smoothing, z_loss=config.z_loss)


def add_sums(one: Sums, other: Sums) -> Sums:
  """Returns the sums of two batches together."""
  return {name: one[name] + other[name] for name in one}


def _factor(term: Term, denominators: Mapping[str, jax.Array]) -> jax.Array:
  return term.weight / jnp.maximum(denominators[term.name], 1.0)


def _sum(values_RM: jax.Array, weights_RM: jax.Array) -> LossSum:
  return LossSum(jnp.sum(values_RM * weights_RM), jnp.sum(weights_RM))
