"""A warning about terms that are lost beside the others in the total loss."""

from collections.abc import Mapping

from dss_jax.losses.base import LossSum
from dss_jax.losses.kinds import kind_of
from dss_jax.losses.objective import Objective, Sums, add_sums

# A term whose part is so many times smaller than the largest teaches next to nothing.
SMALL = 1000.0


class TermBalance:
  """Compares the parts of the total loss up to the first evaluation, once."""

  def __init__(self, objective: Objective):
    self._objective = objective
    self._sums: Sums | None = None
    self._is_done = False

  def add(self, sums: Mapping[str, LossSum]) -> None:
    """Takes the sums of a step."""
    if not self._is_done:
      self._sums = dict(sums) if self._sums is None else add_sums(self._sums, dict(sums))

  def warning(self, gradient_norms: Mapping[str, float] | None = None) -> str | None:
    """Returns a sentence that names the small terms; None without, and from the second call on.

    Args:
      gradient_norms: of each term's part by itself, which are compared instead if they are known.
    """
    if self._is_done or self._sums is None:
      return None
    self._is_done = True
    if gradient_norms:
      return imbalance(gradient_norms, "gradient")
    parts = {}
    for term in self._objective.every_term:
      of_term = self._sums[f"{term.name}/loss"]
      if term.weight and of_term.weight > 0:
        parts[term.name] = abs(term.weight * float(of_term.mean()))
    return imbalance(parts, "part of the loss")


def imbalance(parts: Mapping[str, float], what: str) -> str | None:
  """Returns a sentence about the terms whose part is SMALL times smaller than the largest.

  Args:
    parts: by term, not negative.
    what: what they are, in words.
  """
  if not parts:
    return None
  largest = max(parts, key=lambda name: parts[name])
  small = [name for name in parts if parts[name] * SMALL < parts[largest]]
  if not small:
    return None

  def described(name: str) -> str:
    if not parts[name]:
      return f"that of {name} is 0"
    return f"that of {name} is {parts[largest] / parts[name]:,.0f} times smaller"

  kinds = dict.fromkeys(kind for name in small if (kind := kind_of(name)) is not None)
  mends = [f"raise --kind-weight {kind}=X" for kind in kinds]
  if "label" in small or "rationale" in small:
    mends.append("change --alpha, or lower the other kinds' --kind-weight")
  if not mends:
    mends.append("raise its weight in LossConfig.extra_terms")
  return (
    f"the {what} of {largest} is {parts[largest]:.3g}, and {', '.join(map(described, small))}, so "
    f"it teaches next to nothing; {', '.join(mends)}"
  )
