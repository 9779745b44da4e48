"""Evaluation rows held out of a data set."""

import hashlib

import pytest

from dss_jax.console.splitting import split
from dss_jax.data.records import read_rows, write_rows
from dss_jax.errors import UserError
from dss_jax.jobs.uploads import Uploads


@pytest.fixture
def uploads(tmp_path):
  return Uploads(str(tmp_path / "uploads"), 2**20)


def halves(uploads, tmp_path, rows, percent):
  path = tmp_path / "rows.jsonl"
  write_rows(path, rows)
  made = split(uploads, "p", str(path), "rows.jsonl", percent, "me")
  return [list(read_rows(uploads.path("p", upload))) for upload in made]


def test_rows_are_divided_the_same_way_every_time(uploads, tmp_path):
  rows = [{"input_text": str(number), "output_text": "x"} for number in range(100)]
  train, evaluation = halves(uploads, tmp_path, rows, 10)
  assert (len(train), len(evaluation)) == (90, 10)
  assert sorted(train + evaluation, key=rows.index) == rows
  # Not by chance, and not by the order of the rows.
  by_digest = sorted(rows, key=lambda row: hashlib.sha256(row["input_text"].encode()).digest())
  assert evaluation == sorted(by_digest[:10], key=rows.index)
  _, again = halves(uploads, tmp_path, rows[::-1], 10)
  assert again == evaluation[::-1]


def test_rows_of_one_input_stay_together(uploads, tmp_path):
  rows = [{"input_text": str(number % 10), "output_text": str(number)} for number in range(50)]
  train, evaluation = halves(uploads, tmp_path, rows, 20)
  assert len(evaluation) == 10
  assert not {row["input_text"] for row in train} & {row["input_text"] for row in evaluation}


def test_rows_without_a_label_are_trained_on(uploads, tmp_path):
  rows = [{"input_text": f"no label {number}"} for number in range(50)]
  rows += [{"input_text": str(number), "output_text": "x"} for number in range(4)]
  train, evaluation = halves(uploads, tmp_path, rows, 50)
  assert (len(train), len(evaluation)) == (52, 2)
  assert all("output_text" in row for row in evaluation)


@pytest.mark.parametrize("labelled", [0, 1])
def test_too_few_labels(uploads, tmp_path, labelled):
  rows = [{"input_text": "x"}] + [{"input_text": "y", "output_text": "z"}] * labelled
  with pytest.raises(UserError, match=f"{labelled} inputs have a label, too few"):
    halves(uploads, tmp_path, rows, 10)
  assert uploads.list("p") == []
