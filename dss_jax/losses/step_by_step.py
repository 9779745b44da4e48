"""The step-by-step loss as terms: alpha * label + (1 - alpha) * rationale."""

from dss_jax.config.schema import LABEL, RATIONALE
from dss_jax.losses.base import Term


def step_by_step_terms(alpha: float) -> tuple[Term, ...]:
  """Returns the cross-entropy of labels and of rationales, weighted by alpha and 1 - alpha.

  alpha * sum(label losses) / W_label + (1 - alpha) * sum(rationale losses) / W_rationale,
  each W the summed weights of the tokens of that kind in the whole batch (Hsieh et al. 2023,
  section 3.2, with the means taken over tokens as in its published code). A term of weight 0
  is left out, so that its sequences are not even packed.
  """
  terms = (Term("label", alpha, (LABEL,)), Term("rationale", 1.0 - alpha, (RATIONALE,)))
  return tuple(term for term in terms if term.weight)
