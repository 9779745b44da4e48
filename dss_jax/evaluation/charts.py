"""Charts as SVG for a page without scripts: curves over steps, and the reliability diagram.

Colours and lines are classes of `STYLE`, since the page's policy allows no style attributes.
"""

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

STYLE = """
figure{display:inline-block;margin:0 1.5rem 1rem 0;vertical-align:top}
figcaption{font-weight:600}
svg{width:30rem;max-width:92vw;height:auto}
svg text{font:11px system-ui,sans-serif;fill:#333}
.axis{stroke:#888;fill:none}.grid{stroke:#e4e4e0;fill:none}
.curve{fill:none;stroke-width:1.8}
.c0{stroke:#0a5c9e}.c1{stroke:#b3400a}.c2{stroke:#3b7d23}
.c1.curve{stroke-dasharray:6 3}.c2.curve{stroke-dasharray:2 3}
.best{stroke:#555;stroke-dasharray:1 3}
.bar{fill:#0a5c9e}.ideal{stroke:#888;stroke-dasharray:4 4}
"""

_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 24, 34
_MOST_POINTS = 400


class Curve(NamedTuple):
  """A named line: points (step, value) in the order of the steps."""

  name: str
  points: list[tuple[float, float]]


def line_chart(title: str, curves: Sequence[Curve], *, best_step: int | None = None) -> str:
  """Returns a figure of curves over steps, with a mark at the best step; "" without points."""
  curves = [curve for curve in curves if curve.points]
  if not curves:
    return ""
  values = [value for curve in curves for _, value in curve.points]
  steps = [step for curve in curves for step, _ in curve.points]
  axes = _Axes(0.0, max(steps), *_round_range(min(values), max(values)))
  parts = [axes.drawn("step")]
  for number, curve in enumerate(curves):
    points = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in _thinned(curve.points))
    parts.append(f'<polyline class="curve c{number % 3}" points="{points}"/>')
    x: float = _LEFT + 145 * number
    parts.append(
      f'<path class="curve c{number % 3}" d="M{x} 10h22"/>'
      f'<text x="{x + 26}" y="14">{html.escape(curve.name)}</text>'
    )
  if best_step is not None and axes.low_x <= best_step <= axes.high_x:
    x = axes.x(best_step)
    parts.append(f'<path class="best" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
  told = "; ".join(f"{curve.name} ends at {curve.points[-1][1]:.4g}" for curve in curves)
  return _figure(title, f"{title}: {told}", parts)


def reliability_diagram(title: str, calibration: dict[str, Any]) -> str:
  """Returns a figure of the share right over the mean probability of each bin."""
  axes = _Axes(0.0, 1.0, 0.0, 1.0)
  parts = [
    axes.drawn("probability of the answer"),
    f'<path class="ideal" d="M{axes.x(0)} {axes.y(0)}L{axes.x(1)} {axes.y(1)}"/>',
  ]
  most = max(each["rows"] for each in calibration["bins"])
  for each in calibration["bins"]:
    if not each["rows"]:
      continue
    # The area tells how many rows the bin has.
    radius = 3 + 7 * math.sqrt(each["rows"] / most)
    told = f"{each['rows']} rows, probability {each['probability']:.3f}, right {each['right']:.3f}"
    parts.append(
      f'<circle class="bar" cx="{axes.x(each["probability"]):.1f}" '
      f'cy="{axes.y(each["right"]):.1f}" r="{radius:.1f}"><title>{told}</title></circle>'
    )
  told = f"expected calibration error {calibration['ece']:.3f}"
  return _figure(f"{title} (ECE {calibration['ece']:.3f})", f"{title}: {told}", parts)


class _Axes(NamedTuple):
  """The ranges of both axes, and the places of values in the picture."""

  low_x: float
  high_x: float
  low_y: float
  high_y: float

  def x(self, value: float) -> float:
    span = (self.high_x - self.low_x) or 1.0
    return _LEFT + (value - self.low_x) / span * (_WIDTH - _LEFT - _RIGHT)

  def y(self, value: float) -> float:
    span = (self.high_y - self.low_y) or 1.0
    return _HEIGHT - _BOTTOM - (value - self.low_y) / span * (_HEIGHT - _TOP - _BOTTOM)

  def drawn(self, x_title: str) -> str:
    """Returns grid, axes, their numbers and the title of the x axis."""
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for number in range(5):
      value = self.low_y + number / 4 * (self.high_y - self.low_y)
      y = self.y(value)
      parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
      parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
      value = self.low_x + number / 4 * (self.high_x - self.low_x)
      x = self.x(value)
      parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{value:.4g}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{x_title}</text>')
    return "".join(parts)


def _figure(title: str, told: str, parts: list[str]) -> str:
  return (
    f'<figure><figcaption>{html.escape(title)}</figcaption><svg role="img" '
    f'aria-label="{html.escape(told)}" viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(parts)}</svg>'
    "</figure>"
  )


def _round_range(low: float, high: float) -> tuple[float, float]:
  """Returns a range around the values: a share from 0 to 1, else the next round numbers."""
  if low >= 0.0 and high <= 1.0:
    return 0.0, 1.0
  size = 10.0 ** math.floor(math.log10(max(high - low, 1e-6)))
  return math.floor(low / size) * size, math.ceil(high / size) * size


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
  """Returns at most _MOST_POINTS of the points, the last one included."""
  every = -(-len(points) // _MOST_POINTS)
  return points[::-every][::-1]
