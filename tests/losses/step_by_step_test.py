"""The two terms of the step-by-step loss."""

import pytest

from dss_jax.config.schema import LABEL, RATIONALE
from dss_jax.losses.step_by_step import step_by_step_terms


@pytest.mark.parametrize(
  ("alpha", "terms"),
  [
    (0.3, [("label", 0.3, (LABEL,)), ("rationale", 0.7, (RATIONALE,))]),
    (1.0, [("label", 1.0, (LABEL,))]),
    (0.0, [("rationale", 1.0, (RATIONALE,))]),
  ],
)
def test_a_term_of_weight_zero_is_left_out(alpha, terms):
  assert [(term.name, term.weight, term.kinds) for term in step_by_step_terms(alpha)] == terms
