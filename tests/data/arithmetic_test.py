"""Values of arithmetic text: known values, invalid text, random expressions against Fraction."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dss_jax.data.arithmetic import (
  MAX_EXPRESSION_CHARACTERS,
  MAX_EXPRESSION_DEPTH,
  same_value,
  value_of,
)


@pytest.mark.parametrize(
  ("expression", "value"),
  [
    ("84", 84),
    ("( 84.0 / 2.0 )", 42),
    ("( ( 17.0 + 15.0 ) + 2.0 )", 34),
    ("10 - 3 - 2", 5),
    ("2 + 3 * 4", 14),
    ("24 / 4 / 3", 2),
    ("10 / 4", Fraction(5, 2)),
    ("0.1 + 0.2", Fraction(3, 10)),
    (".5 + 12.", Fraction(25, 2)),
    ("-(2 + 3) * -4", 20),
    ("+7", 7),
    ("1,234,567.5", Fraction(2469135, 2)),
    (" \t( 3 )\n", 3),
  ],
)
def test_known_values(expression, value):
  assert value_of(expression) == value


@pytest.mark.parametrize(
  "expression",
  [
    "",
    " ",
    "(",
    ")",
    "()",
    "(3",
    "3)",
    "2 3",
    "(2)(3)",
    "2 +",
    "* 2",
    "1 / 0",
    "5 / (2 - 2.0)",
    "2 ** 3",
    "7 // 2",
    "1e5",
    "1,23",
    "1,2345",
    "12.5.3",
    "٣",
    "½",
    "(some - 8)",
    "7x = 14",
    "(8 / 4) and (6 / 4)",
    "(175, 5)",
    "__import__('os').system('true')",
    "\x00",
  ],
)
def test_invalid_text_has_no_value(expression):
  assert value_of(expression) is None


def test_length_and_depth_are_bounded():
  assert value_of("1" * MAX_EXPRESSION_CHARACTERS) is not None
  assert value_of("1" * (MAX_EXPRESSION_CHARACTERS + 1)) is None
  deep = MAX_EXPRESSION_DEPTH - 1
  assert value_of("(" * deep + "1" + ")" * deep) == 1
  assert value_of("(" * (deep + 1) + "1" + ")" * (deep + 1)) is None
  assert value_of("-" * 900 + "1") is None


def test_equal_values():
  assert same_value("(84 / 2)", "( 84.0 / 2.0 )")
  assert not same_value("1 / 3", "0.333333333333")
  assert not same_value("42", "41")
  assert not same_value("some", "some")
  assert not same_value("1 / 0", "1")


# (text of a number, its value).
NUMBERS = st.decimals(0, 10**6, places=3, allow_nan=False, allow_infinity=False).map(
  lambda number: (str(number), Fraction(number))
)


def _combined(parts):
  (left, a), operator, (right, b) = parts
  if operator == "/" and b == 0:
    operator = "+"
  value = {"+": a + b, "-": a - b, "*": a * b}.get(operator)
  return f"({left} {operator} {right})", value if value is not None else a / b


EXPRESSIONS = st.recursive(
  NUMBERS,
  lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(_combined),
  max_leaves=8,
)


@given(EXPRESSIONS)
def test_random_expressions_have_their_value(case):
  expression, value = case
  assert value_of(expression) == value
  assert value_of(f"-{expression}") == -value
  assert value_of(expression.replace(" ", "")) == value


@given(st.text() | st.text(alphabet="0123456789.,+-*/() "))
def test_no_text_raises(text):
  assert value_of(text) is None or isinstance(value_of(text), Fraction)


@given(st.lists(st.lists(NUMBERS, min_size=1, max_size=4), min_size=1, max_size=4))
def test_products_bind_before_sums(terms):
  """a * b - c * d - ..., without brackets."""
  expression = " - ".join(" * ".join(text for text, _ in term) for term in terms)
  first, *rest = (math.prod(value for _, value in term) for term in terms)
  assert value_of(expression) == first - sum(rest)
