"""What the console says of a data set."""

from dss_jax.config.schema import DataConfig
from dss_jax.console import examination
from dss_jax.console.examination import Examiner, Source

ROW = '{"input_text": "Is it so?", "output_text": "yes"}\n'


def write(tmp_path, text, name="rows.jsonl"):
  path = tmp_path / name
  path.write_text(text)
  return Source(str(path), f"my {name}")


def test_a_good_file(tmp_path):
  found = Examiner().examine(write(tmp_path, ROW * 3), None, DataConfig(vocabulary="bytes"))
  assert found.is_good
  assert found.counts_tokens
  assert (found.report.train.name, found.report.train.rows) == ("my rows.jsonl", 3)
  assert found.report.train.duplicates.count == 2
  # "predict: Is it so?" or "explain: ..." and the end mark.
  assert found.report.train.lengths["input"].tokens.longest == len("predict: Is it so?") + 1


def test_bad_lines_are_named_without_the_path(tmp_path):
  found = Examiner().examine(write(tmp_path, ROW + "{}\n" * 30), None, DataConfig())
  assert (found.is_good, found.total) == (False, 30)
  assert (found.problems[0].line, found.problems[0].path) == (2, "my rows.jsonl")
  assert len(found.problems) == 20


def test_files_that_cannot_be_read(tmp_path):
  missing = Examiner().examine(Source(str(tmp_path / "x"), "my x"), None, DataConfig())
  assert not missing.is_good
  assert missing.failure.startswith("my x: ")
  empty = Examiner().examine(write(tmp_path, ""), None, DataConfig())
  assert "no rows" in empty.failure
  assert str(tmp_path) not in empty.failure + missing.failure


def test_a_vocabulary_that_must_be_fetched_is_not(tmp_path, monkeypatch):
  monkeypatch.setattr(examination, "load_vocabulary", None)
  for spec in (None, "gs://t5-data/x.model"):
    found = Examiner().examine(write(tmp_path, ROW), None, DataConfig(vocabulary=spec))
    assert (found.is_good, found.counts_tokens) == (True, False)


def test_a_file_is_read_again_when_it_has_changed(tmp_path, monkeypatch):
  read = []
  real = examination.report_on_rows
  monkeypatch.setattr(
    examination, "report_on_rows", lambda *args, **kw: read.append(1) or real(*args, **kw)
  )
  examiner = Examiner()
  source = write(tmp_path, ROW)
  for _ in range(3):
    assert examiner.examine(source, None, DataConfig()).report.train.rows == 1
  assert len(read) == 1
  write(tmp_path, ROW * 2)
  assert examiner.examine(source, None, DataConfig()).report.train.rows == 2
  # Another run cuts it elsewhere.
  examiner.examine(source, None, DataConfig(vocabulary="bytes"))
  assert len(read) == 3
