"""Evaluation of arithmetic expressions written by a model, without `eval`."""

import re
from fractions import Fraction

MAX_EXPRESSION_CHARACTERS = 1000
MAX_EXPRESSION_DEPTH = 50

# A number is 12, 12.5, .5, 12. or 1,234,567; any other text but operators is invalid.
_TOKEN = re.compile(
  r"\s*(?:(?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?(?![0-9,])|[0-9]+\.?[0-9]*|\.[0-9]+)"
  r"|(?P<symbol>[-+*/()]))"
)


class _NoValue(Exception):
  """The text is not an arithmetic expression, or it divides by zero."""


def value_of(expression: str) -> Fraction | None:
  """Returns the exact value of an expression, or None if it has none.

  Numbers (`84`, `84.0`, `.5`, `1,200`), `+ - * /`, signs and brackets, with the usual
  precedence; division is exact. Any text may be passed: invalid text, a division by zero,
  more than 1,000 characters, or more than 50 nested brackets and signs give None.
  """
  if len(expression) > MAX_EXPRESSION_CHARACTERS:
    return None
  try:
    return _Parser(_tokens(expression)).whole()
  except _NoValue:
    return None


def same_value(first: str, second: str) -> bool:
  """Returns whether both expressions have a value and the values are equal."""
  value = value_of(first)
  return value is not None and value == value_of(second)


def _tokens(expression: str) -> list[str]:
  """Returns the numbers and symbols of an expression; raises _NoValue if it is invalid."""
  tokens = []
  text = expression.rstrip()
  position = 0
  while position < len(text):
    match = _TOKEN.match(text, position)
    if match is None:
      raise _NoValue
    tokens.append(match["symbol"] or match["number"].replace(",", ""))
    position = match.end()
  return tokens


class _Parser:
  """A recursive-descent parser: sum -> product -> signed -> number or bracketed sum."""

  def __init__(self, tokens: list[str]):
    self._tokens = tokens
    self._position = 0
    self._depth = 0

  def whole(self) -> Fraction:
    value = self._sum()
    if self._position != len(self._tokens):
      raise _NoValue
    return value

  def _peek(self) -> str:
    return self._tokens[self._position] if self._position < len(self._tokens) else ""

  def _next(self) -> str:
    token = self._peek()
    self._position += 1
    return token

  def _sum(self) -> Fraction:
    value = self._product()
    while self._peek() in ("+", "-"):
      value = value + self._product() if self._next() == "+" else value - self._product()
    return value

  def _product(self) -> Fraction:
    value = self._signed()
    while self._peek() in ("*", "/"):
      operator, operand = self._next(), self._signed()
      if operator == "*":
        value *= operand
      elif operand == 0:
        raise _NoValue
      else:
        value /= operand
    return value

  def _signed(self) -> Fraction:
    self._depth += 1
    if self._depth > MAX_EXPRESSION_DEPTH:
      raise _NoValue
    token = self._next()
    if token == "(":
      value = self._sum()
      if self._next() != ")":
        raise _NoValue
    elif token in ("+", "-"):
      value = self._signed() if token == "+" else -self._signed()
    elif token in ("", ")", "*", "/"):
      raise _NoValue
    else:
      value = Fraction(token)
    self._depth -= 1
    return value
