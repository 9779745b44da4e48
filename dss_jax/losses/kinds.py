"""The kinds of distillation by name: the terms that each adds to a run's objective."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from dss_jax.config.schema import TARGET_KINDS, LossConfig, RunConfig, T5Config
from dss_jax.errors import UserError
from dss_jax.losses.base import StateTerm, Term, TokenLoss
from dss_jax.losses.entropy import entropy
from dss_jax.losses.feature import feature_terms
from dss_jax.losses.objective import Objective
from dss_jax.losses.response import ResponseLoss
from dss_jax.losses.signals import Source
from dss_jax.losses.step_by_step import kind_shares, step_by_step_terms

# Losses of the student's own logits. A task file of one's own may add to them.
TOKEN_LOSSES: dict[str, TokenLoss] = {"entropy": entropy}


@dataclasses.dataclass(frozen=True)
class Networks:
  """The architectures that terms are made for.

  The teacher's is None without one, as in evaluation; terms of its states are left out then.
  """

  student: T5Config
  teacher: T5Config | None


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of distillation.

  Attributes:
    needs: what it needs of a teacher, and in words.
    source: who gives it: the teacher network unless another one is named.
    terms: makes its terms from the run's losses and networks, and the weight.
  """

  needs: Literal["next tokens", "hidden states"] | None
  source: Source
  terms: Callable[[str, float, LossConfig, Networks, Source], tuple[Term | StateTerm, ...]]


def _by_kind(
  name: str, weight: float, alpha: float, token_loss: TokenLoss, source: str
) -> tuple[Term, ...]:
  """Returns a token loss as one term for labels and one for rationales, weighted by alpha."""
  return tuple(
    Term(f"{name}_{TARGET_KINDS[kind]}", weight * share, (kind,), token_loss, source)
    for kind, share in kind_shares(alpha)
  )


def _response(name, weight, config, networks, source):
  return _by_kind(name, weight, config.alpha, ResponseLoss(config.response), source)


def _feature(name, weight, config, networks, source):
  if networks.teacher is None:
    return ()
  return feature_terms(name, weight, config.feature, networks.student, networks.teacher, source)


KINDS: dict[str, Kind] = {
  "response": Kind("next tokens", "teacher", _response),
  "feature": Kind("hidden states", "teacher", _feature),
}


def make_objective(config: LossConfig) -> Objective:
  """Returns the terms of a run that need the student's logits alone, as evaluation has them.

  Raises:
    UserError: an extra term is unknown.
  """
  terms = step_by_step_terms(config.alpha, config.cross_entropy_weight)
  kinds = tuple(kind for term in terms for kind in term.kinds)
  for name, weight in config.extra_terms.items():
    if name in TOKEN_LOSSES:
      terms += (Term(name, weight, kinds, TOKEN_LOSSES[name]),)
    elif name not in KINDS:
      raise UserError(
        f"LossConfig.extra_terms: there is no term {name!r}; choose from "
        f"{', '.join(sorted([*TOKEN_LOSSES, *KINDS]))}"
      )
  return Objective(terms, label_smoothing=config.label_smoothing, z_loss=config.z_loss)


def training_objective(config: RunConfig, teacher: T5Config | None = None) -> Objective:
  """Returns the objective that a run trains on: make_objective's, and the terms of its kinds."""
  objective = make_objective(config.loss)
  networks = Networks(config.model, teacher)
  made = [
    term
    for name, (kind, source, weight) in chosen_kinds(config).items()
    for term in kind.terms(name.replace("-", "_"), weight, config.loss, networks, source)
  ]
  return dataclasses.replace(
    objective,
    terms=objective.terms + tuple(term for term in made if isinstance(term, Term)),
    state_terms=tuple(term for term in made if isinstance(term, StateTerm)),
  )


def chosen_kinds(config: RunConfig) -> Mapping[str, tuple[Kind, Source, float]]:
  """Returns the kinds of a run by name, each with its source and its weight."""
  chosen = {}
  for name, weight in config.loss.extra_terms.items():
    if kind := KINDS.get(name):
      from_file = kind.needs == "next tokens" and config.signals.logits is not None
      source: Source = "file" if from_file and kind.source == "teacher" else kind.source
      chosen[name] = (kind, source, weight)
  return chosen


def check_signals(config: RunConfig) -> None:
  """Raises UserError unless the run has the teacher that its kinds need, and no other."""
  signals, chosen = config.signals, chosen_kinds(config)
  if signals.model is not None and signals.logits is not None:
    raise UserError(
      f"--teacher-model {signals.model} and --teacher-logits {signals.logits} both give the "
      "teacher's next tokens; leave out one of the two"
    )
  sources = {source for _, source, _ in chosen.values()}
  for name, (kind, source, _) in chosen.items():
    if source == "teacher" and signals.model is None:
      raise UserError(_missing(name, kind, config))
  for flag, value, source in (
    ("--teacher-model", signals.model, "teacher"),
    ("--teacher-logits", signals.logits, "file"),
  ):
    if value is not None and source not in sources:
      raise UserError(
        f"{flag} {value}: no kind of this run uses it; add --kind response, or leave it out"
      )


def without_unused_teacher(config: RunConfig) -> RunConfig:
  """Returns the run without a teacher model that none of its kinds uses."""
  sources = {source for _, source, _ in chosen_kinds(config).values()}
  signals = config.signals
  return dataclasses.replace(
    config,
    signals=dataclasses.replace(
      signals,
      model=signals.model if "teacher" in sources else None,
      logits=signals.logits if "file" in sources else None,
    ),
  )


def _missing(name: str, kind: Kind, config: RunConfig) -> str:
  """Returns the sentence that a kind lacks its teacher."""
  given = ""
  if config.teacher.name is not None:
    given = f", and --teacher {config.teacher.name} writes text alone"
  elif config.signals.logits is not None:
    given = f", and --teacher-logits {config.signals.logits} holds next tokens alone"
  mend = "give --teacher-model with a T5-family teacher"
  if kind.needs == "next tokens":
    mend += ", or --teacher-logits with what `dss annotate --signal logits` wrote"
  return f"--kind {name} needs a teacher's {kind.needs}{given}; {mend}"
