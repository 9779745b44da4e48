"""The types of numbers in a configuration, with their bounds."""

import dataclasses
from typing import Annotated


@dataclasses.dataclass(frozen=True)
class Bounds:
  """The smallest and the largest value of a number; None is unbounded."""

  low: float | None = None
  high: float | None = None

  def __str__(self) -> str:
    if self.low is None:
      return f"at most {self.high}"
    if self.high is None:
      return f"at least {self.low}"
    return f"from {self.low} to {self.high}"


class NotEmpty:
  """Marks a tuple that needs at least one item."""

  def __str__(self) -> str:
    return "at least one"


Count = Annotated[int, Bounds(1)]
# Tokens of a sequence: one beside its end-of-sequence token.
Length = Annotated[int, Bounds(2)]
NonNegativeInt = Annotated[int, Bounds(0)]
Share = Annotated[float, Bounds(0, 1)]
NonNegative = Annotated[float, Bounds(0)]
TermWeight = Annotated[float, Bounds(-1000, 1000)]
# Random keys keep 32 bits of a seed: a larger one would repeat a smaller one.
Seed = Annotated[int, Bounds(0, 2**32 - 1)]
