"""Filters of lists in the language of https://google.aip.dev/160, as far as the service took it.

`display_name:"a*" AND (state=RUNNING OR labels.team="x") AND NOT create_time<"2026-01-01"`. As
there, OR binds closer than AND, and a space between two terms means AND.
"""

import dataclasses
import datetime
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from dss_jax.jobs.api_error import ApiError, invalid

Predicate = Callable[[Mapping[str, Any]], bool]

_MAX_CHARACTERS = 4096
_MAX_DEPTH = 20
_TOKEN = re.compile(
  r"""\s*(([()]|<=|>=|!=|[=<>:]|-(?=[A-Za-z("]))|[^\s()=!<>:"']+("(?:[^"\\]|\\.)*")?)"""
)
_VALUE = re.compile(
  r"""\s*(?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'|(?P<bare>[^\s()"']+))"""
)
_COMPARE = {
  "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
  ">=": operator.ge,
}  # fmt: skip
_OPERATORS = {
  "text": ("=", "!=", ":"), "time": tuple(_COMPARE), "labels": ("=", "!=", ":"), "search": (":",),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Field:
  """A field that a filter or an order may name.

  Attributes:
    key: in the resource's JSON; parts of a path are separated by dots.
    kind: "labels" is a map whose keys follow its name: labels.team. "search" is a text in small
      letters that is asked for words.
  """

  key: str
  kind: Literal["text", "time", "labels", "search"] = "text"

  def value(self, resource: Mapping[str, Any]) -> Any:
    """Returns the field's value, None where there is none; a time can be compared."""
    value: Any = resource
    for part in self.key.split("."):
      value = value.get(part) if isinstance(value, Mapping) else None
    return time_of(value) if self.kind == "time" and value is not None else value


def time_of(text: str) -> datetime.datetime:
  """Returns the time that RFC 3339 text means, in UTC if it does not say; raises ValueError."""
  time = datetime.datetime.fromisoformat(text)
  return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def parse_filter(text: str, fields: Mapping[str, Field]) -> Predicate:
  """Returns the function that says whether a resource passes a filter; all do for "".

  Args:
    fields: by name, in snake_case; a filter may write them in camelCase, too.

  Raises:
    ApiError: INVALID_ARGUMENT, with the place in the filter.
  """
  if not text.strip():
    return lambda resource: True
  if len(text) > _MAX_CHARACTERS:
    raise invalid(f"filter: has more than {_MAX_CHARACTERS:,} characters")
  parser = _Parser(text, fields)
  predicate = parser.expression()
  if parser.peek():
    raise parser.error("expected AND or OR")
  return predicate


def find_field(name: str, fields: Mapping[str, Field], parameter: str) -> Field:
  """Returns the field of a name in snake_case or camelCase; raises ApiError if there is none."""
  field = fields.get(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
  if field is None:
    raise invalid(f"{parameter}: no field {name[:70]!r}; there are {', '.join(sorted(fields))}")
  return field


class _Parser:
  def __init__(self, text: str, fields: Mapping[str, Field]):
    self._text = text
    self._fields = fields
    self._at = 0
    self._depth = 0

  def error(self, message: str) -> ApiError:
    near = self._text[self._at : self._at + 20].strip()
    place = f"at {near!r}" if near else "at its end"
    return invalid(f"filter: {message} {place} (character {self._at + 1})")

  def peek(self) -> str:
    """Returns the next mark or word; "" at the end."""
    found = _TOKEN.match(self._text, self._at)
    if found is None and self._text[self._at :].strip():
      raise self.error("cannot be read")
    return found[0].strip() if found else ""

  def take(self) -> str:
    token = self.peek()
    found = _TOKEN.match(self._text, self._at)
    self._at = found.end() if found else len(self._text)
    return token

  def expression(self) -> Predicate:
    """Reads terms with AND between them, or nothing."""
    terms = [self._factor()]
    while self.peek() not in ("", ")", "OR"):
      if self.peek() == "AND":
        self.take()
      terms.append(self._factor())
    return lambda resource: all(term(resource) for term in terms)

  def _factor(self) -> Predicate:
    terms = [self._term()]
    while self.peek() == "OR":
      self.take()
      terms.append(self._term())
    return lambda resource: any(term(resource) for term in terms)

  def _term(self) -> Predicate:
    if self.peek() in ("NOT", "-"):
      self.take()
      inner = self._simple()
      return lambda resource: not inner(resource)
    return self._simple()

  def _simple(self) -> Predicate:
    if self.peek() != "(":
      return self._restriction()
    self.take()
    self._depth += 1
    if self._depth > _MAX_DEPTH:
      raise self.error(f"more than {_MAX_DEPTH} parentheses within each other")
    inner = self.expression()
    if self.peek() != ")":
      raise self.error("expected ')'")
    self.take()
    self._depth -= 1
    return inner

  def _restriction(self) -> Predicate:
    name = self.peek()
    if not name or not name[0].isalpha() or name in ("AND", "OR", "NOT"):
      raise self.error("expected the name of a field")
    self.take()
    own, _, key = name.partition(".")
    field = self._fields.get(own)
    if field is None or field.kind != "labels":
      field, key = find_field(name, self._fields, "filter"), ""
    mark = self.peek()
    if field.kind == "labels" and key and mark not in _COMPARE and mark != ":":
      return _has_label(field, key)
    if mark not in _OPERATORS[field.kind]:
      raise self.error(f"{name[:70]} takes {', '.join(_OPERATORS[field.kind])}, not")
    self.take()
    value = self._value()
    if field.kind == "time":
      return self._time(field, mark, value)
    if field.kind == "text":
      return _text(field.value, mark, value)
    if field.kind == "search":
      words = value.casefold().split()
      return lambda resource: all(word in field.value(resource) for word in words)
    if not key:
      if mark != ":":
        raise self.error(f"{name} needs the name of a label: {name}.NAME")
      return _has_label(field, value)
    key = key[1:-1] if key.startswith('"') and key.endswith('"') and len(key) > 1 else key
    if mark == ":" and value == "*":
      return _has_label(field, key)
    return _text(lambda resource: (field.value(resource) or {}).get(key), mark, value)

  def _value(self) -> str:
    found = _VALUE.match(self._text, self._at)
    if not found:
      raise self.error("expected a value")
    self._at = found.end()
    if found["bare"] is not None:
      return found["bare"]
    quoted = found["single"] if found["double"] is None else found["double"]
    return re.sub(r"\\(.)", r"\1", quoted)

  def _time(self, field: Field, mark: str, value: str) -> Predicate:
    try:
      wanted = time_of(value)
    except ValueError:
      raise self.error(f"{value[:40]!r} is no time such as 2026-01-31T12:00:00Z") from None
    compare = _COMPARE[mark]

    def passes(resource: Mapping[str, Any]) -> bool:
      own = field.value(resource)
      return own is not None and compare(own, wanted)

    return passes


def _has_label(field: Field, key: str) -> Predicate:
  return lambda resource: key in (field.value(resource) or {})


def _text(value_of: Callable[[Mapping[str, Any]], Any], mark: str, wanted: str) -> Predicate:
  def passes(resource: Mapping[str, Any]) -> bool:
    own = value_of(resource)
    if own is None:
      return mark == "!="
    return _matches(str(own), wanted) if mark == ":" else _COMPARE[mark](str(own), wanted)

  return passes


def _matches(text: str, pattern: str) -> bool:
  """Returns whether a text matches a pattern with `*` for anything; without one, contains it."""
  if "*" not in pattern:
    return pattern in text
  first, *middle, last = pattern.split("*")
  if not text.startswith(first) or len(text) < len(first) + len(last) or not text.endswith(last):
    return False
  at, end = len(first), len(text) - len(last)
  for part in middle:
    found = text.find(part, at, end)
    if found < 0:
      return False
    at = found + len(part)
  return True
