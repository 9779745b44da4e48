"""Charts: points where they belong, and nothing but escaped SVG."""

import re
import xml.etree.ElementTree

import numpy as np

from dss_jax.evaluation.calibration import calibration
from dss_jax.evaluation.charts import Curve, line_chart, reliability_diagram


def points_of(svg):
  return [
    [tuple(map(float, point.split(","))) for point in found.split()]
    for found in re.findall(r'points="([^"]*)"', svg)
  ]


def test_curves():
  chart = line_chart("Loss", [Curve("a", [(0, 4.0), (5, 2.0), (10, 0.0)]), Curve("b", [])])
  xml.etree.ElementTree.fromstring(chart)
  (((left, top), (middle, half), (right, bottom)),) = points_of(chart)
  assert left < middle < right
  assert (left + right) / 2 == middle
  assert top < half < bottom
  assert (top + bottom) / 2 == half
  assert "Loss: a ends at 0" in chart
  assert 'class="best"' not in chart


def test_the_best_step_is_marked():
  curve = Curve("a", [(10, 0.5), (20, 0.25)])
  chart = line_chart("Accuracy", [curve], best_step=20)
  x = points_of(chart)[0][-1][0]
  assert f'class="best" d="M{x:.1f} ' in chart
  assert 'class="best"' not in line_chart("Accuracy", [curve], best_step=30)


def test_long_curves_are_thinned_and_keep_their_end():
  (points,) = points_of(line_chart("x", [Curve("a", [(n, n / 5000) for n in range(5001)])]))
  assert len(points) <= 400
  assert points[-1] == max(points)


def test_without_points_there_is_no_chart():
  assert line_chart("x", [Curve("a", [])]) == ""


def test_one_point_and_a_flat_curve_can_be_drawn():
  for points in ([(1, 7.0)], [(1, 7.0), (2, 7.0)]):
    xml.etree.ElementTree.fromstring(line_chart("x", [Curve("a", points)]))


def test_names_are_escaped():
  chart = line_chart("<b>", [Curve('"&', [(1, 1.0)])])
  assert xml.etree.ElementTree.fromstring(chart).find("figcaption").text == "<b>"
  assert "<b>" not in chart


def test_reliability():
  figures = calibration(np.array([0.05, 0.95, 0.95]), np.array([False, True, True]))
  chart = reliability_diagram("Right", figures)
  xml.etree.ElementTree.fromstring(chart)
  assert chart.count("<circle") == 2
  assert "2 rows, probability 0.950, right 1.000" in chart
  assert f"ECE {figures['ece']:.3f}" in chart
