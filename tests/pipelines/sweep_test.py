"""The folders of a sweep's points, never two points in one, and its best run."""

import unicodedata

import pytest

from dss_jax.pipelines.sweep import best_run, run_names


def test_a_name_has_the_values():
  points = [{"SEED": 0, "ALPHA": 0.5}, {"SEED": 1, "ALPHA": 0.5}]
  assert run_names(points) == ["SEED=0,ALPHA=0.5", "SEED=1,ALPHA=0.5"]
  assert run_names([{"DATASET": "data/a [1].jsonl"}]) == ["DATASET=data_a__1_.jsonl"]


@pytest.mark.parametrize(
  ("first", "second"),
  [
    ("data/a.jsonl", "data_a.jsonl"),
    ("Data", "data"),
    ("\u00e5", "\u212b"),
    ("stra\u00dfe", "STRASSE"),
    (1, "1"),
    ("x" * 300 + "a", "x" * 300 + "b"),
    ("\u597d" * 100 + "a", "\u597d" * 100 + "b"),
  ],
)
def test_points_that_would_share_a_folder_do_not(first, second):
  one, other = run_names([{"X": first}, {"X": second}])
  # What a point is called does not change when values are added after it.
  assert [one] == run_names([{"X": first}])
  assert other.startswith("X=")
  assert other[-9] == "-"
  same = {unicodedata.normalize("NFKC", name).casefold() for name in (one, other)}
  assert len(same) == 2
  assert max(len(name.encode()) for name in (one, other)) <= 255


def result(right=None, loss=1.0, accuracy=0.5):
  names = ("label/eval_sequence_accuracy", "label/eval_loss", "label/eval_accuracy")
  values = () if right is None else (right, loss, accuracy)
  return {"metrics": dict(zip(names, values, strict=False))}


@pytest.mark.parametrize(
  ("results", "best"),
  [
    ([result(0.4, accuracy=0.9), result(0.5, accuracy=0.1)], 1),
    ([result(0.5, loss=2.0), result(0.5, loss=1.0), result(0.5, loss=1.5)], 1),
    ([result(), result(0.0, loss=9.0)], 1),
    ([result(0.5), result(0.5)], 0),
    ([result(), result()], None),
  ],
)
def test_the_best_run(results, best):
  assert best_run(results) == best
