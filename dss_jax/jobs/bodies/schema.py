"""The parameterValues of a distillation pipeline: names, defaults, types and bounds.

All that is wrong in a request is said in one error. Imports nothing heavy.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from dss_jax.jobs.api_error import invalid

PLACE = "runtimeConfig.parameterValues"
REQUIRED = object()

_REGION = re.compile(r"[a-z][a-z0-9-]{1,38}[a-z0-9]")
_TENSORBOARD = re.compile(r"(projects/[^/]+/locations/[^/]+/tensorboards/)?[\w-]+")
# What a message shows of a value.
_SHOWN_CHARACTERS = 60
Reader = Callable[[Any], Any]


def _text(most: int = 1024) -> Reader:
  def read(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > most or "\0" in value:
      raise ValueError(f"a text of 1 to {most:,} characters")
    return value

  return read


def _optional_text(most: int = 1024) -> Reader:
  """Reads a text; an empty one is as good as none, as in the service's templates."""

  def read(value: Any) -> str | None:
    return None if value == "" else _text(most)(value)

  return read


def _whole(low: int, high: int) -> Reader:
  def read(value: Any) -> int:
    # Clients that go through protobuf send every number as a float.
    is_whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    if not is_whole or not low <= value <= high:
      raise ValueError(f"a whole number from {low:,} to {high:,}")
    return int(value)

  return read


def _number(low: float, high: float) -> Reader:
  def read(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
      raise ValueError(f"a number from {low:g} to {high:g}")
    return float(value)

  return read


def _flag(value: Any) -> bool:
  # In the deprecated form there are no booleans.
  if value in ("true", "false"):
    return value == "true"
  if not isinstance(value, bool):
    raise ValueError("true or false")
  return value


def _flag_or_default(value: Any) -> bool | None:
  """Reads a flag; None is the default: on if there is evaluation data."""
  if value == "default":
    return None
  try:
    return _flag(value)
  except ValueError:
    raise ValueError('"default", "true", "false" or a boolean') from None


def _choice(*choices: str) -> Reader:
  def read(value: Any) -> str:
    if value not in choices:
      raise ValueError(f"one of {', '.join(choices)}")
    return value

  return read


def _matching(pattern: re.Pattern[str], what: str) -> Reader:
  def read(value: Any) -> str | None:
    if value == "":
      return None
    if not isinstance(value, str) or len(value) > 256 or not pattern.fullmatch(value):
      raise ValueError(what)
    return value

  return read


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A parameter: what reads a value, or raises ValueError with what it must be; its default."""

  read: Reader
  default: Any = None


# The service's table, in its order, and our own.
PARAMETERS: dict[str, Parameter] = {
  "project": Parameter(_text(64), REQUIRED),
  "dataset_uri": Parameter(_text(), REQUIRED),
  "teacher_model_reference": Parameter(_text(256), "text-unicorn@001"),
  "student_model_reference": Parameter(_text(256), "text-bison@002"),
  "model_display_name": Parameter(_text(128), "distilled-student-model"),
  "train_steps": Parameter(_whole(1, 1_000_000), 300),
  "learning_rate_multiplier": Parameter(_number(1e-6, 1e6), 1.0),
  "evaluation_data_uri": Parameter(_optional_text()),
  "evaluation_interval": Parameter(_whole(1, 1_000_000), 20),
  "enable_early_stopping": Parameter(_flag, True),
  "enable_checkpoint_selection": Parameter(_flag_or_default, None),
  "accelerator_type": Parameter(_choice("GPU", "TPU"), "GPU"),
  "tensorboard_resource_id": Parameter(_matching(_TENSORBOARD, "a TensorBoard's resource name")),
  "encryption_spec_key_name": Parameter(_optional_text()),
  "location": Parameter(_matching(_REGION, "a region such as us-central1")),
  "max_context_length": Parameter(_choice("8k", "32k"), "8k"),
  "temperature": Parameter(_number(0, 1), 0.0),
  "evaluation_output_root_dir": Parameter(_optional_text()),
  "api_endpoint": Parameter(_optional_text()),
  "version": Parameter(_optional_text(64), "latest"),
  "tpu_training_skip_cmek": Parameter(_flag, False),
  "review_rationales": Parameter(_flag, False),
}
# Another name of a parameter, from the documentation.
SYNONYMS = {"tuned_model_location": "location"}


def parameter_values(runtime_config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the values of a runtimeConfig, those of the deprecated `parameters` converted.

  Raises ApiError if they are not in one of the two forms, or in both.
  """
  values = runtime_config.get("parameterValues") or {}
  old = runtime_config.get("parameters") or {}
  if not isinstance(values, dict) or not isinstance(old, dict):
    raise invalid("runtimeConfig: parameterValues must be an object of names and values")
  if values and old:
    raise invalid("runtimeConfig: has parameterValues and the deprecated parameters; give one")
  return dict(values) or {name: _old_value(name, value) for name, value in old.items()}


def _old_value(name: str, value: Any) -> Any:
  kinds: dict[str, Callable[[Any], Any]] = {
    "intValue": int,
    "doubleValue": float,
    "stringValue": str,
  }
  if isinstance(value, dict) and len(value) == 1:
    kind, content = next(iter(value.items()))
    if kind in kinds and isinstance(content, (str, int, float)) and not isinstance(content, bool):
      try:
        return kinds[kind](content)
      except (ValueError, OverflowError):
        pass
  raise invalid(
    f"runtimeConfig.parameters.{name[:_SHOWN_CHARACTERS]}: must be one of intValue, doubleValue"
    " and stringValue with its value"
  )


def read_parameters(values: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  """Returns every parameter's value, with its default where none is given.

  Args:
    problems: a sentence is added for each unknown name and each wrong or missing value; such a
      parameter has its default, or None.
  """
  given: dict[str, Any] = {}
  spelled: dict[str, str] = {}
  for name, value in values.items():
    known = SYNONYMS.get(name, name)
    if known not in PARAMETERS:
      near = difflib.get_close_matches(name, [*PARAMETERS, *SYNONYMS], n=1)
      mend = f"did you mean {near[0]}?" if near else "leave it out"
      problems.append(f"{name[:_SHOWN_CHARACTERS]!r} is no parameter, {mend}")
    elif value is None:
      # A client's way to leave a parameter out.
      continue
    elif known in given and given[known] != value:
      problems.append(f"{name} is {shown(value)}, but its other name says {shown(given[known])}")
    else:
      given[known] = value
      spelled[known] = name
  read = {}
  for name, parameter in PARAMETERS.items():
    default = None if parameter.default is REQUIRED else parameter.default
    read[name] = default
    if name not in given:
      if parameter.default is REQUIRED:
        problems.append(f"{name} is required")
      continue
    try:
      read[name] = parameter.read(given[name])
    except ValueError as error:
      problems.append(f"{spelled[name]} is {shown(given[name])}, but must be {error}")
  return read


def shown(value: Any) -> str:
  """Returns a value as a message shows it."""
  text = repr(value)
  return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
