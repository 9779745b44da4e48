"""Kinds of distillation on the command line: --kind names gin files of runs/, which are composed.

Imports nothing heavy.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dss_jax.cli import options
from dss_jax.cli.options import option
from dss_jax.errors import UserError

# What a run trains on targets by cross-entropy: at most one of them.
_LABELS = "runs/tune.gin"
_BASES = {"step-by-step": "runs/distill.gin", "labels": _LABELS}
# The other kinds, each runs/NAME.gin with an underscore for a hyphen.
KINDS = (
  *("response", "universal", "feature", "relation", "attention", "self-average", "self-layers"),
  *("mutual-information", "on-policy"),
)

TEACHER_MODEL = options.options(
  option("--teacher-model", field="SignalConfig.model", metavar="DIR|NAME[@VERSION]|CHECKPOINT",
         help="A T5-family teacher whose next tokens and states the kinds compare with."),
  option("--teacher-vocabulary", field="SignalConfig.vocabulary", metavar="bytes|FILE",
         help="The vocabulary of a teacher model that has none beside it.",
         default_text="the student's"),
  option("--teacher-weights", field="SignalConfig.weights",
         help="How the teacher model is kept in memory."),
)  # fmt: skip
OPTIONS = options.options(
  option("--kind", metavar="KIND,...", default_text="step-by-step",
         help="What the student is trained on, together: step-by-step or labels, and "
         f"{', '.join(KINDS)}."),
  option("--kind-weight", "kind_weights", multiple=True, metavar="KIND=X",
         help="The weight of a kind's loss; may be repeated.",
         default_text="that of its file in gin_configs/runs"),
  option("--term-gradients/--no-term-gradients", field="EvaluationConfig.term_gradients",
         help="At every evaluation, log the gradient norm of each term of the loss by itself."),
  TEACHER_MODEL,
  option("--teacher-logits", field="SignalConfig.logits", metavar="DIR",
         help="A teacher's next tokens that `dss annotate --signal logits` wrote, in place of the "
         "model."),
  option("--on-policy-share", field="OnPolicyConfig.share",
         default_text="0.5 with --kind on-policy",
         help="Share of the steps whose targets the student samples for the teacher model."),
)  # fmt: skip


def compose(
  base: str, kinds: str | None, weights: Sequence[str] = ()
) -> tuple[list[str], list[Any]]:
  """Returns the gin files and bindings of a run of some kinds.

  Args:
    base: the file of a run without --kind.
    kinds: names with commas between them; None for those of the base.
    weights: KIND=X each.

  Raises UserError for a name that is unknown or twice, a wrong weight, and two bases.
  """
  from dss_jax.config.gin_loader import Binding, value_in

  if kinds is None:
    if weights:
      raise UserError(f"--kind-weight {weights[0]}: there is no --kind that it could weight")
    return [base], _labels_alone(base, "dss tune")
  names = [name.strip() for name in kinds.split(",")]
  for number, name in enumerate(names):
    if name not in _BASES and name not in KINDS:
      raise UserError(
        f"--kind {kinds}: there is no kind {name!r}; choose from {', '.join([*_BASES, *KINDS])}"
      )
    if name in names[:number]:
      raise UserError(f"--kind {kinds}: has {name!r} twice; keep one of them")
  bases = [name for name in names if name in _BASES]
  if len(bases) > 1:
    raise UserError(
      f"--kind {kinds}: step-by-step trains on labels already; leave out one of the two"
    )
  terms: dict[str, float] = {}
  files = []
  for name in names:
    if name not in _BASES:
      files.append(f"runs/{name.replace('-', '_')}.gin")
      terms.update(value_in(files[-1:], "LossConfig.extra_terms"))
  files.append(_BASES[bases[0]] if bases else base)
  given = _weights(weights, [*bases, *terms])
  terms |= {name: weight for name, weight in given.items() if name in terms}
  bindings = _labels_alone(files[-1], "--kind labels")
  if terms:
    bindings.append(Binding("LossConfig.extra_terms", terms, "--kind"))
  weight = given.get(bases[0], 1.0) if bases else 0.0
  if weight != 1.0:
    bindings.append(Binding("LossConfig.cross_entropy_weight", weight, "--kind"))
  return files, bindings


def _labels_alone(base: str, place: str) -> list[Any]:
  """Returns the binding for labels alone, which a --gin-file that includes a run cannot undo."""
  from dss_jax.config.gin_loader import Binding

  return [Binding("ALPHA", 1.0, place)] if base == _LABELS else []


def _weights(weights: Sequence[str], losses: Sequence[str]) -> Mapping[str, float]:
  """Returns the weights that were given, by the kind whose loss they weight."""
  given = {}
  for text in weights:
    name, _, value = text.partition("=")
    if name not in losses:
      raise UserError(
        f"--kind-weight {text}: the run has no loss {name!r}; choose from {', '.join(losses)}"
      )
    try:
      given[name] = float(value)
    except ValueError as error:
      raise UserError(f"--kind-weight {text}: {value!r} is no number; write KIND=X") from error
  return given
