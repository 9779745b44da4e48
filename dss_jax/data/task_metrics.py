"""The figures of a task's metric: user code, whose failure must not cost the run that it judges."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from dss_jax.data.task_files import Metric, failure_of, place_of
from dss_jax.progress import say


def task_figures(
  metric: Metric, targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, Any]:
  """Returns what a metric gives, as Python's own numbers, texts, lists and dicts.

  NumPy's and JAX's scalars and arrays are converted. A metric that fails, or a figure that is
  none of these, is left out and said on standard error.
  """
  try:
    return plain_figures(metric, targets, predictions)
  except (Exception, SystemExit) as error:
    say(f"warning: the task's metric failed: {failure_of(metric, error)}; its figures are left out")
    return {}


def plain_figures(
  metric: Metric, targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, Any]:
  """Returns the same as task_figures; raises what the metric raises."""
  figures = metric(targets, predictions)
  if not isinstance(figures, Mapping):
    raise TypeError(f"it gives a {type(figures).__name__}, not a dict of figures")
  plain = {}
  for name, value in figures.items():
    try:
      plain[str(name)] = _plain(value)
    except (Exception, RecursionError):
      say(
        f"warning: the task's metric ({place_of(metric)}) gives {name!s} as a"
        f" {type(value).__name__}, not as a number; it is left out"
      )
  return plain


def _plain(value: Any) -> Any:
  if value is None or isinstance(value, bool | int | float | str):
    return value
  # NumPy's, JAX's and other libraries' scalars and arrays.
  if hasattr(value, "tolist"):
    return _plain(value.tolist())
  if isinstance(value, Mapping):
    return {str(name): _plain(inner) for name, inner in value.items()}
  if isinstance(value, list | tuple | set | frozenset):
    return [_plain(inner) for inner in value]
  # Fractions and decimals.
  if isinstance(value, numbers.Real) or hasattr(value, "as_tuple"):
    return float(value)
  raise TypeError
