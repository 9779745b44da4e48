"""The step-by-step loss as terms: alpha * label + (1 - alpha) * rationale."""

from dss_jax.config.schema import LABEL, RATIONALE, TARGET_KINDS
from dss_jax.losses.base import Term


def step_by_step_terms(alpha: float, weight: float = 1.0) -> tuple[Term, ...]:
  """Returns the cross-entropy of labels and of rationales, weighted by alpha and 1 - alpha.

  alpha * sum(label losses) / W_label + (1 - alpha) * sum(rationale losses) / W_rationale,
  each W the summed weights of the tokens of that kind in the whole batch (Hsieh et al. 2023,
  section 3.2, with the means taken over tokens as in its published code). A kind whose share is
  0 is left out, so that its sequences are not even packed.

  Args:
    weight: of both together; 0 leaves the losses in the metrics alone.
  """
  return tuple(
    Term(TARGET_KINDS[kind], weight * share, (kind,)) for kind, share in kind_shares(alpha)
  )


def kind_shares(alpha: float) -> tuple[tuple[int, float], ...]:
  """Returns the target kinds that are trained on, each with its share of a loss."""
  shares = ((LABEL, alpha), (RATIONALE, 1.0 - alpha))
  return tuple((kind, share) for kind, share in shares if share)
