"""Checks of arguments: type, bounds and known names, before anything runs."""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dss_jax.errors import UserError


class ArgumentError(UserError, ValueError):
  """An argument of a wrong type or value: one sentence with its name, value and what is allowed."""


def check_text(name: str, value: Any) -> str:
  if not isinstance(value, str):
    raise ArgumentError(f"{name}: is {_shown(value)}, but must be a text")
  if not value.strip():
    raise ArgumentError(f"{name}: is empty; give a text")
  return value


def check_texts(name: str, values: Any) -> list[str]:
  if isinstance(values, str) or not isinstance(values, Sequence):
    raise ArgumentError(f"{name}: is {_shown(values)}, but must be a list of texts")
  return [check_text(f"{name}[{number}]", value) for number, value in enumerate(values)]


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> int | None:
  """Returns the integer, or None for None."""
  if value is None:
    return None
  if isinstance(value, bool) or not hasattr(value, "__index__"):
    raise ArgumentError(f"{name}: is {_shown(value)}, but must be an integer, {_range(low, high)}")
  return int(_within(name, value.__index__(), low, high))


def check_number(name: str, value: Any, low: float, high: float | None = None) -> float | None:
  """Returns the number, or None for None."""
  if value is None:
    return None
  if isinstance(value, bool) or not hasattr(value, "__float__"):
    raise ArgumentError(f"{name}: is {_shown(value)}, but must be a number, {_range(low, high)}")
  return _within(name, float(value), low, high)


def check_flag(name: str, value: Any) -> bool | None:
  """Returns True, False, or None for None."""
  if value is None or isinstance(value, bool):
    return value
  raise ArgumentError(f"{name}: is {_shown(value)}, but must be True or False")


def check_choice(name: str, value: Any, choices: Collection[str]) -> str | None:
  """Returns the choice, or None for None."""
  if value is None or (isinstance(value, str) and value in choices):
    return value
  raise ArgumentError(f"{name}: is {_shown(value)}, but must be {' or '.join(map(repr, choices))}")


def check_names(name: str, given: Any, known: Collection[str]) -> Mapping[str, Any]:
  """Returns a mapping whose keys are all known, empty for None."""
  if given is None:
    return {}
  if not isinstance(given, Mapping):
    raise ArgumentError(f"{name}: is {_shown(given)}, but must be a dictionary")
  for key in given:
    if key not in known:
      near = difflib.get_close_matches(str(key), known, n=1)
      mend = f"did you mean {near[0]!r}?" if near else f"give some of {', '.join(sorted(known))}"
      raise ArgumentError(f"{name}: there is no {key!r}; {mend}")
  return given


def _within(name: str, value: float, low: float, high: float | None) -> float:
  if not math.isfinite(value) or value < low or (high is not None and value > high):
    raise ArgumentError(f"{name}: is {value!r}, but must be {_range(low, high)}")
  return value


def _range(low: float, high: float | None) -> str:
  return f"at least {low}" if high is None else f"from {low} to {high}"


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:57]}..."
