"""The strict gin loader: gin files and flags in, one frozen configuration out.

gin's own parser reads the files; this module interprets its statements. What gin accepts silently
(an unused binding, an undefined macro, an unset REQUIRED, a wrong type) is an error here, which
names the binding and its place. A gin file sets the fields of the given dataclass and nothing
else: it cannot import or call code.
"""

import dataclasses
import difflib
import io
import math
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from gin import config_parser

from dss_jax.config.schema import NotEmpty, flatten, shipped_folder
from dss_jax.errors import UserError

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Binding:
  """One `name = value` of a field or a macro; `place` is its file and line, or its flag."""

  name: str
  value: Any
  place: str


def parse_binding(text: str, place: str) -> Binding:
  """Parses `NAME=VALUE`, with the value in gin's (Python's) literal syntax."""
  bindings = _parse(io.StringIO(text), place, single=True)
  if len(bindings) != 1:
    raise UserError(f"{place}: {text!r} is not one NAME=VALUE; write for example TRAIN_STEPS=500")
  return dataclasses.replace(bindings[0], place=place)


def load_config(
  cls: type[Config], files: Sequence[str], overrides: Sequence[Binding] = ()
) -> Config:
  """Builds and checks the configuration that the gin files, and then the overrides, describe.

  Later bindings win over earlier ones. A macro counts as used if any binding names it, even one
  that a later binding replaces.

  Raises:
    UserError: an unknown or unused binding, an undefined or circular macro, an unset REQUIRED, a
      value of the wrong type or out of bounds, or an override of a macro that has no effect. The
      message is one sentence with the binding's name and place.
  """
  statements = [binding for file in files for binding in _parse_file(file, ())]
  statements += overrides
  bindings = {binding.name: binding for binding in statements}
  resolver = _Resolver(bindings)
  known = _known_bindings(cls)
  values = {}
  for name, binding in bindings.items():
    if "." not in name:
      continue
    if name not in known:
      raise UserError(
        f"{binding.place}: nothing is named {name!r}; {_suggestion(name, known)} "
        "(macros are written in capitals without a point)"
      )
    value, place = resolver.value(binding)
    values[name] = _validated(name, known[name], value, place)
  used = _used_macros(statements)
  for name, binding in bindings.items():
    if "." not in name and name not in used:
      raise UserError(f"{binding.place}: no binding uses {name!r}; {_suggestion(name, used)}")
  _check_effect(overrides, statements, bindings, resolver.used)
  return _build(cls, values)


def _check_effect(
  overrides: Sequence[Binding],
  statements: Sequence[Binding],
  bindings: Mapping[str, Binding],
  resolved: set[str],
) -> None:
  """Raises UserError for a flag whose macro no field uses, since a file sets the field itself."""
  for flag in overrides:
    if "." in flag.name or flag.name in resolved or bindings[flag.name] is not flag:
      continue
    shadowed = (s.name for s in statements if flag.name in _macros_in(s.value))
    winner = bindings[next(shadowed)]
    raise UserError(
      f"{flag.place}: has no effect, since {winner.name} is set at {winner.place}; leave out "
      "one of the two"
    )


def value_in(files: Sequence[str], name: str) -> Any:
  """Returns the value that gin files give a macro or field; None if they do not set it."""
  bindings = {binding.name: binding for file in files for binding in _parse_file(file, ())}
  return _Resolver(bindings).value(bindings[name])[0] if name in bindings else None


def to_gin(config: Any) -> str:
  """Returns gin text that `load_config` turns back into an equal configuration."""
  lines = []
  for name, value in sorted(flatten(config).items()):
    lines.append(f"{name} = {dict(value) if isinstance(value, Mapping) else value!r}")
  return "\n".join(lines) + "\n"


@dataclasses.dataclass(frozen=True)
class _Macro:
  name: str


@dataclasses.dataclass(frozen=True)
class _Reference:
  name: str


class _Delegate(config_parser.ParserDelegate):
  """Makes gin's parser return macros and references by name, unresolved."""

  def configurable_reference(self, scoped_name, evaluate):
    return _Reference(scoped_name)

  def macro(self, name):
    return _Macro(name)


def _find_file(file: str, place: str) -> pathlib.Path:
  """Returns a gin file's path, as given or as shipped (`[gin_configs/]runs/distill.gin`)."""
  shipped = shipped_folder("gin_configs")
  candidates = [pathlib.Path(file), shipped / file, shipped.parent / file]
  if pathlib.Path(file).parts[:1] == ("gin_configs",):
    candidates.append(shipped.joinpath(*pathlib.Path(file).parts[1:]))
  for path in candidates:
    if path.is_file():
      return path
  raise UserError(
    f"{place}there is no gin file {file!r}, neither here nor under {shipped}; give the path of one"
  )


def _parse_file(file: str, including: tuple[pathlib.Path, ...]) -> list[Binding]:
  place = f"{including[-1]}: " if including else ""
  path = _find_file(file, place)
  if path in including:
    raise UserError(f"{place}includes itself through {file!r}; remove one of the includes")
  try:
    text = path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f"{path}: cannot be read as UTF-8 text ({error}); give a text file of lines NAME = VALUE"
    ) from error
  return _parse(io.StringIO(text), str(path), including=(*including, path))


def _parse(
  stream: io.StringIO,
  place: str,
  including: tuple[pathlib.Path, ...] = (),
  single: bool = False,
) -> list[Binding]:
  bindings: list[Binding] = []
  try:
    for statement in config_parser.ConfigParser(stream, _Delegate()):
      where = place if single else f"{place}:{statement.location.line_num}"
      if isinstance(statement, config_parser.IncludeStatement):
        if single:
          raise UserError(f"{where}: includes a file, which a flag cannot; give it as --gin-file")
        bindings += _parse_file(statement.filename, including)
      elif isinstance(statement, config_parser.ImportStatement):
        raise UserError(f"{where}: imports code, which a configuration here cannot; remove it")
      elif isinstance(statement, config_parser.BindingStatement):
        if statement.scope:
          raise UserError(
            f"{where}: the scope {statement.scope!r} means nothing here; write the name without it"
          )
        names = (statement.selector, statement.arg_name)
        bindings.append(Binding(".".join(filter(None, names)), statement.value, where))
  except SyntaxError as error:
    line = getattr(error.args[-1], "line_num", None) or error.lineno
    where = place if single or not line else f"{place}:{line}"
    # The last line is the reason; a line before it may contain the address of a Python object.
    reason = str(error.args[0]).strip().splitlines()[-1].strip()
    raise UserError(_not_gin(where, reason, single)) from error
  except (ValueError, EOFError, config_parser.tokenize.TokenError) as error:
    raise UserError(_not_gin(place, str((*error.args, "")[0]), single)) from error
  return bindings


def _not_gin(place: str, reason: str, is_flag: bool) -> str:
  # A shell removes the quotes around a text unless they are quoted themselves.
  mend = "NAME=VALUE, text as NAME=\"'text'\"" if is_flag else "NAME = VALUE, text in quotes"
  return f"{place}: this is not gin: {reason.rstrip('.')}; write {mend}"


def _used_macros(statements: Sequence[Binding]) -> set[str]:
  """Returns the macros that fields use, directly or through other macros."""
  named: dict[str, set[str]] = {}
  for binding in statements:
    named.setdefault(binding.name, set()).update(_macros_in(binding.value))
  used: set[str] = set()
  unseen = {macro for name, macros in named.items() if "." in name for macro in macros}
  while unseen:
    used |= unseen
    unseen = {macro for name in unseen for macro in named.get(name, ())} - used
  return used


def _macros_in(value: Any) -> Iterable[str]:
  if isinstance(value, _Macro):
    yield value.name
  elif isinstance(value, dict):
    yield from _macros_in(list(value.values()))
  elif isinstance(value, (list, tuple)):
    for item in value:
      yield from _macros_in(item)


class _Resolver:
  """Replaces macros by their values and records which were used."""

  def __init__(self, bindings: Mapping[str, Binding]):
    self._bindings = bindings
    self.used: set[str] = set()

  def value(self, binding: Binding, seen: tuple[str, ...] = ()) -> tuple[Any, str]:
    """Returns a binding's value and the place of the literal behind its macros."""
    if isinstance(binding.value, _Macro):
      return self._macro(binding.value.name, binding, seen)
    return self._resolve(binding.value, binding, seen), binding.place

  def _resolve(self, value: Any, binding: Binding, seen: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
      return {key: self._resolve(item, binding, seen) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
      return type(value)(self._resolve(item, binding, seen) for item in value)
    if isinstance(value, _Macro):
      return self._macro(value.name, binding, seen)[0]
    if isinstance(value, _Reference):
      raise UserError(
        f"{binding.place}: {binding.name} = @{value.name} would call code, which a configuration "
        "here cannot; give a plain value"
      )
    return value

  def _macro(self, name: str, binding: Binding, seen: tuple[str, ...]) -> tuple[Any, str]:
    if name in ("gin.REQUIRED", "REQUIRED"):
      raise UserError(
        f"{binding.place}: {binding.name} is required; "
        f"set it with --gin.{binding.name}=VALUE or in a gin file"
      )
    if name in seen:
      raise UserError(f"{binding.place}: the macro %{name} is defined by itself; give it a value")
    if name not in self._bindings:
      macros = [other for other in self._bindings if "." not in other]
      raise UserError(
        f"{binding.place}: {binding.name} uses the macro %{name}, which nothing defines; "
        f"{_suggestion(name, macros)}"
      )
    self.used.add(name)
    return self.value(self._bindings[name], (*seen, name))


def _known_bindings(cls: type) -> dict[str, Any]:
  """Maps `Class.field` to its type, for a dataclass and its parts."""
  known = {}
  for name, hint in typing.get_type_hints(cls, include_extras=True).items():
    if dataclasses.is_dataclass(hint):
      known.update(_known_bindings(typing.cast(type, hint)))
    else:
      known[f"{cls.__name__}.{name}"] = hint
  return known


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
  arguments = {}
  for field in dataclasses.fields(cls):
    name = f"{cls.__name__}.{field.name}"
    if dataclasses.is_dataclass(field.type):
      arguments[field.name] = _build(field.type, values)
    elif name in values:
      arguments[field.name] = values[name]
    elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
      raise UserError(f"{name} is not set; set it with --gin.{name}=VALUE or in a gin file")
  return cls(**arguments)


def _validated(name: str, hint: Any, value: Any, place: str) -> Any:
  """Returns the value, converted, or raises UserError; an int is accepted for a float."""
  problem, converted = _convert(hint, value)
  if problem:
    raise UserError(f"{place}: {name} = {value!r} must be {problem}")
  return converted


def _convert(hint: Any, value: Any) -> tuple[str | None, Any]:
  """Returns (what the value must be, or None if it is right; the converted value)."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    results = [_convert(argument, value) for argument in arguments]
    valid = [converted for problem, converted in results if problem is None]
    return (None, valid[0]) if valid else (" or ".join(str(p) for p, _ in results), value)
  if origin is Annotated:
    problem, converted = _convert(arguments[0], value)
    bounds = arguments[1]
    if isinstance(bounds, NotEmpty):
      return problem or (None if converted else f"a tuple of {bounds}"), converted
    if problem is None and not (
      (bounds.low is None or converted >= bounds.low)
      and (bounds.high is None or converted <= bounds.high)
    ):
      problem = str(bounds)
    return (problem, converted)
  if origin is Literal:
    return (None if value in arguments else f"one of {', '.join(map(repr, arguments))}", value)
  if origin is tuple and isinstance(value, (list, tuple)):
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
      return f"a tuple of {len(arguments)}", value
    matches = [_convert(arguments[0], item) for item in value]
    problem = next((f"a tuple, each {p}" for p, _ in matches if p), None)
    return problem, tuple(converted for _, converted in matches)
  if origin is list and isinstance(value, list):
    return None, value
  if origin in (dict, Mapping) and isinstance(value, dict):
    for part, hint_of_part in ((value.keys(), arguments[0]), (value.values(), arguments[1])):
      problem = next((p for p, _ in (_convert(hint_of_part, item) for item in part) if p), None)
      if problem:
        return (
          f"a dictionary of {_type_name(arguments[0])} to {_type_name(arguments[1])} ({problem})",
          value,
        )
    needed = typing.get_args(arguments[0])
    missing = [key for key in needed if key not in value]
    return (f"a dictionary with the key {missing[0]!r} too" if missing else None, value)
  if hint is Any:
    return None, value
  if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
    try:
      number = float(value)
    except OverflowError:
      number = math.inf
    return (None if math.isfinite(number) else "a finite number"), number
  plain = hint if origin is None else origin
  is_valid = isinstance(value, plain) and (plain is bool or not isinstance(value, bool))
  return (None if is_valid else _type_name(plain), value)


def _type_name(hint: Any) -> str:
  names = {
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    bool: "True or False",
    Mapping: "a dictionary",
  }
  if typing.get_origin(hint) is Annotated:
    hint = typing.get_args(hint)[0]
  if typing.get_origin(hint) is Literal:
    return "one of " + ", ".join(map(repr, typing.get_args(hint)))
  return names.get(hint, "None" if hint is type(None) else f"a {getattr(hint, '__name__', hint)}")


def _suggestion(name: str, allowed: Iterable[str]) -> str:
  """Returns a closing clause with the most similar names."""
  close = difflib.get_close_matches(name, list(allowed), n=3, cutoff=0.5)
  return f"did you mean {' or '.join(close)}?" if close else "check its spelling"
