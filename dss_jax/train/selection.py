"""The rules by which evaluations are compared: which checkpoint is best, and what is progress.

An evaluation on 100 rows is a sample: one more label right may be chance. The rule "noise-aware"
compares two evaluations row by row and takes what lies within one standard error for equal; among
equals the label's loss decides, which says more per row. "token-accuracy" compares numbers alone.
"""

import dataclasses
from typing import Any, NamedTuple

from dss_jax.config.schema import EvaluationConfig


@dataclasses.dataclass(frozen=True)
class Scores:
  """The results of one evaluation that the rules compare.

  Attributes:
    right: "1" for each row whose label is wholly right, "0" for each other, in the rows' order.
    accuracy: the share of correct label tokens.
    loss: the mean loss of the label tokens.
  """

  right: str
  accuracy: float
  loss: float


@dataclasses.dataclass(frozen=True)
class Standing:
  """What further evaluations are compared with; saved with every checkpoint.

  Attributes:
    best: the scores of the best checkpoint.
    reference: the scores that accuracies are compared with: by the rule "noise-aware" those with
      the most rows right, by "token-accuracy" those of the last improvement.
  """

  best: Scores | None = None
  reference: Scores | None = None

  @classmethod
  def from_json(cls, value: dict[str, Any]) -> "Standing":
    """Returns what dataclasses.asdict was given."""
    return cls(**{name: scores and Scores(**scores) for name, scores in value.items()})


class Verdict(NamedTuple):
  """The result of comparing an evaluation with the standing of the run."""

  standing: Standing
  is_best: bool
  is_improvement: bool


def compare(standing: Standing, new: Scores, config: EvaluationConfig) -> Verdict:
  """Compares a new evaluation with earlier ones by the configured rule."""
  rule = {"noise-aware": _noise_aware, "token-accuracy": _token_accuracy}[config.selection]
  return rule(standing, new, config.min_improvement)


def exceeds_error(one: str, other: str, min_improvement: float = 0.0) -> bool:
  """Returns whether more rows are right in `one`, by more than a standard error.

  With w rows that only `one` has right and l that only `other` has, the difference of the two
  accuracies is (w - l) / n and its standard error sqrt(w + l - (w - l)^2 / n) / sqrt(n (n - 1)),
  so the difference exceeds it if (w - l)^2 > w + l. This is McNemar's statistic above 1.

  Args:
    min_improvement: the difference of accuracies must exceed this, too.
  """
  won = lost = 0
  for ours, theirs in zip(one, other, strict=True):
    won += ours > theirs
    lost += ours < theirs
  more = won - lost
  return more > 0 and more**2 > won + lost and more > min_improvement * len(one)


def _noise_aware(standing: Standing, new: Scores, min_improvement: float) -> Verdict:
  """Takes the lowest loss within one standard error of the most rows right.

  This is the one-standard-error rule of Breiman et al. 1984 (Hastie et al. 2009, section 7.10).
  Comparing with the most rows right, not with the best checkpoint, keeps a falling loss from
  lowering the accuracy a little at a time.
  """
  best, top = standing.best, standing.reference
  if best is None or top is None:
    return Verdict(Standing(new, new), True, True)
  if new.right.count("1") > top.right.count("1"):
    top = new
  is_tied, stays_tied = (
    not exceeds_error(top.right, each.right, min_improvement) for each in (new, best)
  )
  is_best = is_tied and (not stays_tied or new.loss < best.loss)
  return Verdict(Standing(new if is_best else best, top), is_best, is_best)


def _token_accuracy(standing: Standing, new: Scores, min_improvement: float) -> Verdict:
  """Takes the highest token accuracy, then the lowest loss, then the newest."""
  best, reference = standing.best, standing.reference
  is_best = best is None or (new.accuracy, -new.loss) >= (best.accuracy, -best.loss)
  is_improvement = reference is None or new.accuracy > reference.accuracy + min_improvement
  return Verdict(
    Standing(new if is_best else best, new if is_improvement else reference),
    is_best,
    is_improvement,
  )
