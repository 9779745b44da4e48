"""The kinds of distillation by name: the terms that each adds to a run's objective."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from dss_jax.config.schema import TARGET_KINDS, LossConfig, RunConfig, T5Config
from dss_jax.errors import UserError
from dss_jax.losses.attention import attention_terms
from dss_jax.losses.base import StateTerm, Term, TokenLoss
from dss_jax.losses.entropy import entropy
from dss_jax.losses.feature import feature_terms
from dss_jax.losses.mutual_information import MutualInformationLoss
from dss_jax.losses.objective import Objective
from dss_jax.losses.relation import relation_terms
from dss_jax.losses.response import ResponseLoss
from dss_jax.losses.self_layers import self_layers_terms
from dss_jax.losses.signals import ALIGNED, Source
from dss_jax.losses.step_by_step import kind_shares, step_by_step_terms
from dss_jax.losses.universal import UniversalLoss

# Losses of the student's own logits. A task file of one's own may add to them.
TOKEN_LOSSES: dict[str, TokenLoss] = {"entropy": entropy}


@dataclasses.dataclass(frozen=True)
class Networks:
  """The architectures that terms are made for, and the batches that they see.

  Attributes:
    teacher: None without one, as in evaluation; terms of its states are left out then.
    examples: the most examples in a batch.
  """

  student: T5Config
  teacher: T5Config | None
  examples: int


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of distillation.

  Attributes:
    needs: what it needs of a teacher, and in words.
    source: who gives it: the teacher network unless another one is named; None where the student
      alone is needed.
    terms: makes its terms from the run's losses and networks, and the weight.
    compares_examples: whether it compares the examples of a batch with each other, so that a
      batch is computed at once, and its arrays say which example each position belongs to.
  """

  needs: Literal["next tokens", "hidden states"] | None
  source: Source | None
  terms: Callable[[str, float, LossConfig, Networks, Any], tuple[Term | StateTerm, ...]]
  compares_examples: bool = False


def _by_kind(
  name: str,
  weight: float,
  alpha: float,
  token_loss: TokenLoss,
  source: str,
  weights_from: str | None = None,
) -> tuple[Term, ...]:
  """Returns a token loss as one term for labels and one for rationales, weighted by alpha."""
  return tuple(
    Term(
      f"{name}_{TARGET_KINDS[kind]}",
      weight * share,
      (kind,),
      token_loss,
      source,
      weights_from=weights_from,
    )
    for kind, share in kind_shares(alpha)
  )


def _response(name, weight, config, networks, source):
  return _by_kind(name, weight, config.alpha, ResponseLoss(config.response), source)


def _feature(name, weight, config, networks, source):
  if networks.teacher is None:
    return ()
  return feature_terms(name, weight, config.feature, networks.student, networks.teacher, source)


def _relation(name, weight, config, networks, source):
  if networks.teacher is None:
    return ()
  return relation_terms(
    name,
    weight,
    config.relation,
    networks.student,
    networks.teacher,
    source,
    networks.examples,
  )


def _attention(name, weight, config, networks, source):
  if networks.teacher is None:
    return ()
  return attention_terms(name, weight, config.attention, networks.student, networks.teacher, source)


def _self_layers(name, weight, config, networks, source):
  return self_layers_terms(name, weight, config, networks.student, source)


def _mutual_information(name, weight, config, networks, source):
  if config.alpha in (0.0, 1.0):
    trained = "labels" if config.alpha else "rationales"
    raise UserError(
      f"--kind mutual-information compares labels with rationales, and alpha {config.alpha:g} "
      f"trains on {trained} alone; give --kind step-by-step,mutual-information with an --alpha "
      "between 0 and 1"
    )
  loss = MutualInformationLoss(
    config.mutual_information.temperature,
    networks.student.num_decoder_layers,
    networks.examples,
  )
  return (StateTerm(name, weight, loss, source),)


def _universal(name, weight, config, networks, source):
  return _by_kind(name, weight, config.alpha, UniversalLoss(config.universal), source, ALIGNED)


KINDS: dict[str, Kind] = {
  "response": Kind("next tokens", "teacher", _response),
  "universal": Kind("next tokens", "file", _universal),
  "feature": Kind("hidden states", "teacher", _feature),
  "relation": Kind("hidden states", "teacher", _relation, compares_examples=True),
  "attention": Kind("hidden states", "teacher", _attention),
  "self-average": Kind("next tokens", "average", _response),
  "self-layers": Kind("next tokens", "student", _self_layers),
  "mutual-information": Kind(None, None, _mutual_information, compares_examples=True),
}


def make_objective(config: LossConfig) -> Objective:
  """Returns the terms of a run that need the student's logits alone.

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


def evaluation_objective(config: LossConfig) -> Objective:
  """Returns what a run is evaluated on: make_objective's terms.

  Of a run without cross-entropy, they have the weights that it would have.
  """
  return make_objective(
    dataclasses.replace(config, cross_entropy_weight=config.cross_entropy_weight or 1.0)
  )


def training_objective(config: RunConfig, teacher: T5Config | None = None) -> Objective:
  """Returns the objective that a run trains on: make_objective's, and the terms of its kinds."""
  objective = make_objective(config.loss)
  networks = Networks(config.model, teacher, config.batch_size)
  made = [
    term
    for name, (kind, source, weight) in chosen_kinds(config).items()
    for term in kind.terms(_term_prefix(name), weight, config.loss, networks, source)
  ]
  return dataclasses.replace(
    objective,
    terms=objective.terms + tuple(term for term in made if isinstance(term, Term)),
    state_terms=tuple(term for term in made if isinstance(term, StateTerm)),
  )


def compares_examples(config: RunConfig) -> bool:
  """Returns whether a kind of the run compares the examples of a batch with each other."""
  return any(kind.compares_examples for kind, _, _ in chosen_kinds(config).values())


def chosen_kinds(config: RunConfig) -> Mapping[str, tuple[Kind, Source | None, float]]:
  """Returns the kinds of a run by name, each with its source and its weight."""
  chosen = {}
  for name, weight in config.loss.extra_terms.items():
    if kind := KINDS.get(name):
      from_file = kind.needs == "next tokens" and config.signals.logits is not None
      source: Source | None = "file" if from_file and kind.source == "teacher" else kind.source
      chosen[name] = (kind, source, weight)
  return chosen


def kind_of(term: str) -> str | None:
  """Returns the kind that a term belongs to, by their names; None for other terms."""
  fitting = [name for name in KINDS if f"{term}_".startswith(f"{_term_prefix(name)}_")]
  return max(fitting, key=len, default=None)


def _term_prefix(kind: str) -> str:
  return kind.replace("-", "_")


def check_signals(config: RunConfig) -> None:
  """Raises UserError unless the run has what its kinds need: their teacher alone, whole batches."""
  signals, chosen = config.signals, chosen_kinds(config)
  if signals.model is not None and signals.logits is not None:
    raise UserError(
      f"--teacher-model {signals.model} and --teacher-logits {signals.logits} both give the "
      "teacher's next tokens; leave out one of the two"
    )
  sources = {source for _, source, _ in chosen.values()}
  for name, (kind, source, _) in chosen.items():
    given = {"teacher": signals.model, "file": signals.logits}
    if source in given and given[source] is None:
      raise UserError(_missing(name, kind, config))
    if kind.compares_examples and config.accumulation_steps > 1:
      raise UserError(
        f"--kind {name} compares the examples of a batch with each other, which "
        f"RunConfig.accumulation_steps = {config.accumulation_steps} would separate; set it to 1"
      )
  for flag, value, source, users in (
    ("--teacher-model", signals.model, "teacher", "response"),
    ("--teacher-logits", signals.logits, "file", "response or universal"),
  ):
    if value is not None and source not in sources:
      raise UserError(
        f"{flag} {value}: no kind of this run uses it; add --kind {users}, or leave it out"
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
  files = "--teacher-logits with what `dss annotate --signal logits` wrote"
  if kind.source == "file":
    return f"--kind {name} needs a file of a teacher's next tokens; give {files}"
  mend = "give --teacher-model with a T5-family teacher"
  if kind.needs == "next tokens":
    mend += f", or {files}"
  return f"--kind {name} needs a teacher's {kind.needs}{given}; {mend}"
