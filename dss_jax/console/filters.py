"""How templates write times, states and numbers."""

import datetime


def moment(text: str | None) -> str:
  """Returns an RFC 3339 time as a person reads it, in UTC; "–" for none."""
  if not text:
    return "–"
  return f"{datetime.datetime.fromisoformat(text).astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def state_name(state: str) -> str:
  """Returns a state of a job or a task as a word: "Not triggered"."""
  return state.replace("_", " ").capitalize()


def state_pair(state: str) -> tuple[str, str]:
  """Returns a state and its word, for a field's options."""
  return state, state_name(state)


def choice(pair: tuple[str, str]) -> tuple[str, str, str]:
  """Returns a value and its text as a radio button's, without a hint."""
  return (*pair, "")


def duration(seconds: float) -> str:
  """Returns a length of time in the two largest units: "2 h 5 min"."""
  whole = round(seconds)
  if whole < 60:
    return f"{whole} s"
  minutes, rest = divmod(whole, 60)
  if minutes < 60:
    return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
  hours, minutes = divmod(minutes, 60)
  if hours < 48:
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
  return f"{hours // 24} d {hours % 24} h"


def count(number: float) -> str:
  """Returns a whole number with separators of thousands."""
  return f"{number:,.0f}"


def figure(number: float) -> str:
  """Returns a metric's value with four digits, a whole number with all."""
  return f"{number:,.0f}" if number == int(number) else f"{number:.4g}"


def size(number: int) -> str:
  """Returns a number of bytes in its largest unit."""
  amount, unit = float(number), "bytes"
  for larger in ("KiB", "MiB", "GiB", "TiB"):
    if amount < 1024:
      break
    amount, unit = amount / 1024, larger
  return f"{amount:,.0f} {unit}" if unit == "bytes" else f"{amount:,.1f} {unit}"


_ALL = (moment, state_name, state_pair, choice, duration, count, figure, size)
FILTERS = {each.__name__: each for each in _ALL}
