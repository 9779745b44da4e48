"""The folders of a sweep's points: readable, and never two points in one."""

import unicodedata

import pytest

from dss_jax.pipelines.sweep import run_names


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
