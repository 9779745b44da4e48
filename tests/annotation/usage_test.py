"""Prices: the cost of tokens, if it is known."""

from dss_jax.annotation.usage import Prices


def test_cost_needs_both_prices():
  assert Prices(2.0, 10.0).cost(1e6, 5e5) == 7.0
  assert Prices(0.0, 10.0).cost(1e6, 5e5) == 5.0
  assert Prices(2.0).cost(1e6, 5e5) is None
  assert Prices(completion=10.0).cost(1e6, 5e5) is None
