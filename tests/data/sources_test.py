"""Sources of rows: their digest, their counts, and repeated reading of files."""

import json

import pytest

from dss_jax.data.sources import source_from_file, source_from_rows, source_from_task, summarise
from dss_jax.data.task_files import load_task
from dss_jax.errors import UserError

ROW = {"input_text": "x", "output_text": "y", "rationale": "z"}


@pytest.mark.parametrize(
  "rows",
  [
    [{**ROW, "input_text": "x "}],
    [{**ROW, "output_text": "yy"}],
    [{**ROW, "rationale": "y"}],
    [{"input_text": "x", "output_text": "y"}],
    [{"input_text": "x", "output_text": "z", "rationale": "y"}],
    [{"input_text": "x", "rationale": "y"}],
    [ROW, ROW],
    [],
    [{**ROW, "input_text": "é"}],
    [{**ROW, "input_text": "e\u0301"}],
  ],
)
def test_the_digest_depends_on_the_texts(rows):
  assert summarise(rows).digest != summarise([ROW]).digest


def test_the_digest_depends_on_the_order_but_not_on_other_keys():
  other = {"input_text": "é", "output_text": "v"}
  assert summarise([ROW, other]).digest != summarise([other, ROW]).digest
  shuffled = {"id": 7, "rationale": "z", "output_text": "y", "input_text": "x"}
  assert summarise([shuffled]).digest == summarise([ROW]).digest
  assert len(summarise([ROW]).digest) == 64


def test_counts():
  rows = [ROW, {"input_text": "a", "output_text": "b"}, {"input_text": "c"}]
  rows.append({"input_text": "d", "rationale": "e"})
  assert summarise(rows)[1:] == (4, 2, 2, 1)
  assert source_from_rows("r", rows).report == {
    "rows": 4,
    "labelled": 2,
    "with_rationale": 2,
    "unusable": 1,
  }


def test_a_file_is_read_again_each_time(tmp_path):
  path = tmp_path / "my train-set.v2.jsonl"
  path.write_text(json.dumps({**ROW, "id": 1}) + "\n")
  source = source_from_file(path)
  assert source.name == "my_train_set"
  assert list(source.rows) == list(source.rows) == [{**ROW, "id": 1}]
  assert source.digest == summarise([ROW]).digest
  assert source.report["file"] == str(path)
  assert source.metric(["a"], ["a"]) == {"accuracy": 100.0}


def test_a_bad_file_is_a_user_error(tmp_path):
  path = tmp_path / "bad.jsonl"
  path.write_text("{}\n")
  with pytest.raises(UserError, match=r"bad\.jsonl:1"):
    source_from_file(path)


def test_a_task_has_its_metric_and_report(shared):
  source = source_from_task(load_task("svamp"), "train", shared / "data" / "svamp", "teacher")
  assert source.name == "svamp_train"
  assert source.report["label_source"] == "teacher"
  assert source.report["rows"] == len(source.rows) == 710
  assert source.report["teacher"]["dropped"] == 10
  assert source.metric(["( 4.0 / 2.0 )"], ["2"])["accuracy"] == 100.0
  gold = source_from_task(load_task("svamp"), "train", shared / "data" / "svamp")
  assert gold.digest != source.digest
  validation = source_from_task(
    load_task("svamp"), "validation", shared / "data" / "svamp", "teacher"
  )
  assert validation.report["label_source"] == "gold"
