"""The figures of a user's metric: numbers of any library, and failures that cost nothing."""

import decimal
import fractions
import json

import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.data.task_metrics import task_figures


def figures_of(value):
  return task_figures(lambda targets, predictions: {"x": value}, ["a"], ["a"])


@pytest.mark.parametrize(
  ("value", "plain"),
  [
    (np.float32(0.5), 0.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (np.array(0.25), 0.25),
    (np.arange(3), [0, 1, 2]),
    (jnp.float32(0.5), 0.5),
    (jnp.bfloat16(0.5), 0.5),
    ({"yes": np.float64(1), 2: [np.int8(1)]}, {"yes": 1.0, "2": [1]}),
    ((1, None), [1, None]),
    (fractions.Fraction(1, 4), 0.25),
    (decimal.Decimal("0.5"), 0.5),
    ("text", "text"),
  ],
)
def test_figures_become_plain(value, plain, capsys):
  assert figures_of(value) == {"x": plain}
  json.dumps(figures_of(value))
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", [(one for one in "ab"), object(), 1j, np.datetime64("2020")])
def test_a_figure_that_is_no_number_is_left_out_and_said(value, capsys):
  assert figures_of(value) == {}
  assert "task_metrics_test.py:" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("metric", "words"),
  [
    (lambda targets, predictions: 1 / 0, "ZeroDivisionError: division by zero, in "),
    (lambda targets, predictions: 0.5, "it gives a float, not a dict of figures"),
    (lambda targets: {}, "TypeError"),
    (lambda targets, predictions: exit(), "SystemExit"),
  ],
)
def test_a_metric_that_fails_has_no_figures(metric, words, capsys):
  assert task_figures(metric, ["a"], ["a"]) == {}
  message = capsys.readouterr().err
  assert message.startswith("warning: the task's metric failed: ")
  assert words in message
  assert "task_metrics_test.py" in message
