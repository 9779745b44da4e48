"""A real server with OpenAI's API, set in the environment: `make test-live`.

DSS_LIVE_TEACHER is the value of --teacher (openai:MODEL), DSS_LIVE_URL the server's URL with /v1,
OPENAI_API_KEY the key.
"""

import os

import pytest

from dss_jax.annotation.annotate_file import TeacherOptions, annotate_file
from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.report import report_on, to_text
from dss_jax.annotation.run import RequestConfig
from dss_jax.data.records import read_rows, write_rows

TEACHER, URL = os.environ.get("DSS_LIVE_TEACHER"), os.environ.get("DSS_LIVE_URL")

pytestmark = [
  pytest.mark.live,
  pytest.mark.skipif(not TEACHER, reason="no teacher is set: set DSS_LIVE_TEACHER, DSS_LIVE_URL"),
]

ROWS = [
  ("Ann had 3 pens and bought 4 more.\nHow many pens does she have now?", "( 3.0 + 4.0 )"),
  ("A farmer packs 48 eggs into boxes of 6.\nHow many boxes does he fill?", "( 48.0 / 6.0 )"),
  ("Tom had 20 marbles and lost 7 of them.\nHow many marbles are left?", "( 20.0 - 7.0 )"),
]


@pytest.mark.parametrize("api", ["chat", "completion"])
def test_a_few_rows(api, tmp_path, capsys):
  """Each row has an answer, right or wrong, and is requested once."""
  rows = [{"input_text": text, "output_text": label} for text, label in ROWS]
  write_rows(tmp_path / "in.jsonl", rows)

  def run():
    return annotate_file(
      tmp_path / "in.jsonl",
      tmp_path / "out.jsonl",
      TeacherOptions(teacher=TEACHER, url=URL or None, timeout_seconds=600.0),
      AnnotationConfig(teacher_labels="teacher"),
      RequestConfig(api=api, max_requests_in_flight=2),
      prompt="svamp",
    )

  figures = run()
  assert figures["requests"] == len(ROWS)
  assert figures["statuses"]["failed"] == 0
  assert figures["compared_with_gold"] == len(ROWS)
  for row, (text, label) in zip(read_rows(tmp_path / "out.jsonl"), ROWS, strict=True):
    assert row["input_text"] == text
    assert row["provenance"]["gold_label"] == label
    assert row["provenance"]["samples"][0]["raw"].strip()
  assert run()["requests"] == 0
  with capsys.disabled():
    print("\n" + to_text(report_on(tmp_path / "out.jsonl")))
