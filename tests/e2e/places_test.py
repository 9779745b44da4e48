"""Rows from pipes, and environments that were made for other programs."""

import gzip
import os
import threading

import numpy as np
import pytest


def test_rows_come_from_pipes(with_student):
  folder = with_student.folder
  expected = with_student("predict", "--model", "student", "--mesh", "data=1", "--dataset",
                          "eval.jsonl", "--output", "file.jsonl")  # fmt: skip
  assert expected.code == 0, expected.err
  os.mkfifo(folder / "pipe.jsonl")
  content = gzip.compress((folder / "eval.jsonl").read_bytes())
  writer = threading.Thread(target=(folder / "pipe.jsonl").write_bytes, args=(content,))
  writer.start()
  outcome = with_student("predict", "--model", "student", "--mesh", "data=1", "--dataset",
                         "pipe.jsonl", "--output", "pipe_answers.jsonl")  # fmt: skip
  writer.join()
  assert outcome.code == 0, outcome.err
  assert with_student.read("pipe_answers.jsonl") == with_student.read("file.jsonl")


@pytest.mark.parametrize(
  "variables",
  [
    {"JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_DISABLE_JIT": "1"},
    {"JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_THREEFRY_PARTITIONABLE": "0", "LC_ALL": "C",
     "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
  ],
)  # fmt: skip
def test_the_environment_does_not_change_the_numbers(with_student, monkeypatch, variables):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  outcome = with_student.finish(with_student.start("distill", *with_student.flags("other")))
  assert outcome.code == 0, outcome.err
  ours, theirs = (
    [
      line["train_total_loss"]
      for line in with_student.numbers(folder)
      if "train_total_loss" in line
    ]
    for folder in ("student", "other")
  )
  np.testing.assert_allclose(theirs, ours, rtol=1e-4)


def test_a_folder_whose_name_is_no_text_is_refused(dss, refuses):
  refuses("tune", *dss.flags("m\udcff"), says=["m\\udcff", "set LC_ALL=C.UTF-8"])


def test_rows_in_a_file_whose_name_is_no_text(with_student):
  (with_student.folder / "train.jsonl").rename(with_student.folder / "r\udcff.jsonl")
  with_student.train("other", "--dataset", "r\udcff.jsonl")
  assert with_student.card("other")["finished"]
