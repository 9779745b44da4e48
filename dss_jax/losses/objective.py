"""The objective: named terms with weights; those of tokens share one pass over the logits.

Step, loop, evaluation and metrics see its sums as `dict[str, LossSum]` and know no term by name.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dss_jax.config.schema import TARGET_KINDS
from dss_jax.losses.base import LossSum, StateTerm, Term
from dss_jax.losses.cross_entropy import TokenLosses, cross_entropy
from dss_jax.losses.signals import NetworkOutputs
from dss_jax.model.states import decoder_hidden

Sums = dict[str, LossSum]


@dataclasses.dataclass(frozen=True)
class Objective:
  """The total loss: sum over the terms of weight * mean over what the term compares.

  Its sums are `<term>/loss` for each term, and `<kind>/accuracy` for "label" and "rationale",
  the correct next tokens, where a term has tokens of the kind.

  Attributes:
    terms: the terms of target tokens.
    state_terms: those of hidden states.
    label_smoothing, z_loss: of the cross-entropy, in training alone (see cross_entropy).
  """

  terms: tuple[Term, ...]
  state_terms: tuple[StateTerm, ...] = ()
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

  @property
  def sources(self) -> frozenset[str]:
    """Who gives the signals that the terms need."""
    return frozenset(term.source for term in self.every_term if term.source is not None)

  @property
  def every_term(self) -> tuple[Term | StateTerm, ...]:
    return (*self.terms, *self.state_terms)

  def of_source(self, source: str) -> "Objective":
    """Returns the terms that need the signal of this source."""
    return dataclasses.replace(
      self,
      terms=tuple(term for term in self.terms if term.source == source),
      state_terms=tuple(term for term in self.state_terms if term.source == source),
    )

  def alone(self, name: str) -> "Objective":
    """Returns the objective of one term."""
    return dataclasses.replace(
      self,
      terms=tuple(term for term in self.terms if term.name == name),
      state_terms=tuple(term for term in self.state_terms if term.name == name),
    )

  def kept_layers(self, source: str | None) -> dict[str, tuple[int, ...]]:
    """Returns the states that the terms read, by stack: a source's, or (None) the student's."""
    layers: dict[str, set[int]] = {"encoder": set(), "decoder": set()}
    if source is None:
      layers["decoder"].update(layer for layer in self._by_layer() if layer is not None)
    for term in self.state_terms:
      read = term.loss.student_layers if source is None else {}
      if source is not None and term.source == source:
        read = term.loss.teacher_layers
      for stack, numbers in read.items():
        layers[stack].update(numbers)
    return {stack: tuple(sorted(numbers)) for stack, numbers in layers.items()}

  def projections(self, key: jax.Array) -> dict[str, Any]:
    """Initialises the weights that terms train beside the student's, by term; {} for none."""
    made = {
      term.name: term.loss.projections(jax.random.fold_in(key, number))
      for number, term in enumerate(self.state_terms)
    }
    return {name: weights for name, weights in made.items() if weights}

  def denominators(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the denominator of each term, by its name, for the *whole* batch."""
    return {term.name: term.denominator(batch) for term in self.every_term}

  def loss(
    self,
    student: NetworkOutputs,
    batch: Mapping[str, jax.Array],
    denominators: Mapping[str, jax.Array],
    signals: Mapping[str, Any] | None = None,
    *,
    training: bool,
    shards: int = 1,
  ) -> tuple[jax.Array, TokenLosses]:
    """Computes the token terms' part of the total loss, and each position's figures.

    The parts of microbatches and hosts add up to the loss of the whole batch, and so do the sums
    of the figures (see sums). All terms of the same logits share one pass over them, in which they
    exist for a chunk of positions at a time.

    Args:
      batch: `decoder_target_tokens`, `decoder_loss_weights` and `decoder_target_kinds`, [R, M].
      denominators: those of the whole batch.
      signals: the NextTokens or NetworkOutputs of each source but the student.
      shards: the number of devices that the logits are sharded over.
    """
    signals = {**(signals or {}), "student": student}
    targets_RM = batch["decoder_target_tokens"]

    def one_pass(
      hidden_RMD: jax.Array, cross_entropy_weights: jax.Array, terms: Sequence[Term]
    ) -> tuple[jax.Array, TokenLosses]:
      return cross_entropy(
        hidden_RMD,
        student.kernel_DV,
        targets_RM,
        cross_entropy_weights,
        extra=[
          (
            term.token_loss,
            term.token_weights(batch) * _factor(term, denominators),
            None if term.source is None else _next_tokens(signals[term.source]),
          )
          for term in terms
          if term.token_loss is not None
        ],
        label_smoothing=self.label_smoothing if training else 0.0,
        z_loss=self.z_loss if training else 0.0,
        shards=shards,
      )

    by_layer = self._by_layer()
    usual = by_layer.pop(None, [])
    weights = self.cross_entropy_weights(batch, denominators)
    total, losses = one_pass(student.hidden_RMD, weights, usual)
    extra = dict(zip((term.name for term in usual), losses.extra, strict=True))
    for layer, terms in by_layer.items():
      assert layer is not None
      assert student.config is not None
      hidden_RMD = decoder_hidden(student.params, student.config, student.decoder[layer])
      part, of_layer = one_pass(hidden_RMD, jnp.zeros_like(weights), terms)
      total += part
      extra |= zip((term.name for term in terms), of_layer.extra, strict=True)
    return total, losses._replace(extra=tuple(extra[term.name] for term in self._beside()))

  def _beside(self) -> list[Term]:
    """Returns the token terms that are not cross-entropies."""
    return [term for term in self.terms if term.token_loss is not None]

  def _by_layer(self) -> dict[int | None, list[Term]]:
    """Returns those terms by the decoder layer of their logits."""
    by_layer: dict[int | None, list[Term]] = {}
    for term in self._beside():
      by_layer.setdefault(term.layer, []).append(term)
    return by_layer

  def state_loss(
    self,
    student: NetworkOutputs,
    batch: Mapping[str, jax.Array],
    denominators: Mapping[str, jax.Array],
    signals: Mapping[str, Any],
    projections: Mapping[str, Any],
  ) -> tuple[jax.Array, Sums]:
    """Computes the state terms' part of the total loss, a float32 scalar, and their sums.

    Args:
      projections: what `projections` initialised, trained since, without its boxes.
    """
    loss = jnp.zeros((), jnp.float32)
    sums = {}
    for term in self.state_terms:
      teacher = None if term.source is None else jax.lax.stop_gradient(signals[term.source])
      with jax.named_scope(term.name):
        total = term.loss.total(student, teacher, batch, projections.get(term.name, {}))
      loss += total * _factor(term, denominators)
      sums[f"{term.name}/loss"] = LossSum(total, term.denominator(batch))
    return loss, sums

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
    for term in self.every_term:
      total += term.weight * sums[f"{term.name}/loss"].mean()
    return jnp.asarray(total)


def add_sums(one: Sums, other: Sums) -> Sums:
  """Returns the sums of two batches together."""
  return {name: one[name] + other[name] for name in one}


def _next_tokens(signal: Any) -> Any:
  return signal.next_tokens() if isinstance(signal, NetworkOutputs) else signal


def _factor(term: Term | StateTerm, denominators: Mapping[str, jax.Array]) -> jax.Array:
  return term.weight / jnp.maximum(denominators[term.name], 1.0)


def _sum(values_RM: jax.Array, weights_RM: jax.Array) -> LossSum:
  return LossSum(jnp.sum(values_RM * weights_RM), jnp.sum(weights_RM))
