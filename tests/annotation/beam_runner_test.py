"""`dss annotate --runner DirectRunner`: same output as without Beam, in parts, resumable."""

import json
import pathlib
import subprocess
import sys
import time

import fsspec
import pytest

from dss_jax.annotation.annotate_file import TeacherOptions, annotate_file
from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.run import RequestConfig
from dss_jax.data.records import read_rows, write_rows
from dss_jax.errors import UserError

pytestmark = pytest.mark.beam
pytest.importorskip("apache_beam", reason="Apache Beam is not installed: make test-beam")

from dss_jax.annotation import beam_runner  # noqa: E402

ROWS = 35


@pytest.fixture
def annotated(server, numbered, tmp_path, monkeypatch):
  """A function that annotates numbered rows, with Beam ten per part: (figures, output)."""
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  monkeypatch.setattr(beam_runner, "ROWS_PER_PART", 10)
  write_rows(tmp_path / "in.jsonl", numbered(ROWS))

  def run(name, teacher=None, config=None, request_config=None, **keywords):
    output = name if "://" in name else tmp_path / name
    options = TeacherOptions(teacher=teacher or "openai:m", url=None if teacher else server.url)
    keywords.setdefault("prompt", "svamp")
    figures = annotate_file(
      tmp_path / "in.jsonl",
      output,
      options,
      config or AnnotationConfig(),
      request_config or RequestConfig(max_requests_in_flight=4),
      **keywords,
    )
    return figures, output

  return run


def rows_without_times(path):
  rows = list(read_rows(path))
  for row in rows:
    for sample in row["provenance"].get("samples", []):
      assert sample.pop("time")
  return rows


SAME = (
  "statuses",
  "parsed",
  "agreeing",
  "concerns",
  "prompt_tokens",
  "answers",
  "prompt",
  "teacher",
)


@pytest.mark.parametrize(
  "config",
  [AnnotationConfig(), AnnotationConfig(samples=3, temperature=0.7, rationales_per_row=2)],
)
def test_same_output_as_without_beam(config, annotated, server):
  server.latency = lambda row: 0.01 * (row % 3)
  server.fault = lambda row, attempt: (400, b'{"error": "no"}', ()) if row == 17 else None
  ordinary, first = annotated("ordinary.jsonl", config=config)
  asked = len(server.requests)
  by_beam, second = annotated("beam.jsonl", config=config, runner="DirectRunner")
  assert len(server.requests) == 2 * asked
  assert rows_without_times(second) == rows_without_times(first)
  assert {key: by_beam[key] for key in SAME} == {key: ordinary[key] for key in SAME}
  assert (by_beam["requests"], by_beam["rows"]) == (ordinary["requests"], ROWS)


def test_recorded_answers_with_a_task_file(annotated, tmp_path):
  """Row numbers continue over all parts, and workers use the task's own parser."""
  lines = [
    json.dumps({"index": n, "llm_output": f"It is {n} and 1. The answer is ({n} + 1)."})
    for n in range(ROWS)
  ]
  (tmp_path / "recorded.jsonl").write_text("\n".join(lines))
  (tmp_path / "task.py").write_text(
    "import dataclasses\nfrom dss_jax.data.task_files import load_task\n"
    "svamp = load_task('svamp')\n"
    "TASK = dataclasses.replace(svamp, name='mine', to_row=lambda row: row)\n"
  )
  teacher = f"recorded:{tmp_path / 'recorded.jsonl'}"
  task = {"task": str(tmp_path / "task.py"), "prompt": None}
  _, first = annotated("ordinary.jsonl", teacher, **task)
  figures, second = annotated("beam.jsonl", teacher, runner="DirectRunner", **task)
  assert figures["statuses"]["answered"] == ROWS
  assert list(read_rows(second)) == [row | {"provenance": row["provenance"]} for row in
                                     read_rows(first)]  # fmt: skip
  assert not pathlib.Path(beam_runner.parts_folder(second)).exists()


@pytest.mark.parametrize("output", ["beam.jsonl", "memory://bucket/beam.jsonl"])
def test_a_failed_run_is_resumed(output, annotated, server):
  server.fault = lambda row, attempt: (401, b"{}", ()) if row >= 20 else None
  with pytest.raises(UserError, match=r"HTTP 401: the key was rejected"):
    annotated(output, runner="DirectRunner")
  assert not fsspec.core.url_to_fs(output)[0].exists(output)
  assert set(server.completed) == set(range(20))
  # The last part is not tried.
  assert max(row for row, _ in server.requests) < 30
  asked = len(server.requests)
  server.fault = lambda row, attempt: None
  figures, written = annotated(output, runner="DirectRunner")
  assert sorted(row for row, _ in server.requests[asked:]) == list(range(20, ROWS))
  assert figures["answers_from_journal"] == 20
  assert [row["output_text"] for row in read_rows(written)] == [f"({n} + 1)" for n in range(ROWS)]
  assert annotated(output, runner="DirectRunner")[0]["requests"] == 0


def test_a_killed_run_is_resumed(server, numbered, tmp_path):
  """SIGKILL in the middle of a part: answers in the journal are not requested again."""
  server.latency = lambda row: 0.1
  write_rows(tmp_path / "in.jsonl", numbered(60))
  output = tmp_path / "out.jsonl"
  journal = pathlib.Path(f"{output}.parts/000000.jsonl.answers.jsonl")
  command = [
    sys.executable, "-c", "from dss_jax.cli.main import main; main()", "annotate",
    tmp_path / "in.jsonl", "--teacher", "openai:m", "--teacher-url", server.url, "--prompt",
    "svamp", "--output", output, "--runner", "DirectRunner", "--max-requests-in-flight", "4",
  ]  # fmt: skip

  def answers():
    return journal.read_text().splitlines() if journal.exists() else []

  with subprocess.Popen(command, stderr=subprocess.PIPE) as run:
    while len(answers()) < 10:
      assert run.poll() is None, run.stderr.read().decode()
      time.sleep(0.01)
    run.kill()
  assert not output.exists()
  server.wait_until_idle()
  whole = len(answers())
  asked = len(server.requests)
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  figures = json.loads(done.stdout)
  assert figures["answers_from_journal"] == whole
  assert len(server.requests) - asked == 60 - whole
  assert [row["output_text"] for row in read_rows(output)] == [f"({n} + 1)" for n in range(60)]


def test_the_key_is_not_written(annotated, server, tmp_path, monkeypatch):
  key = "sk-secret-0123456789abcdef"
  monkeypatch.setenv("OPENAI_API_KEY", key)
  annotated("beam.jsonl", runner="DirectRunner")
  assert f"Bearer {key}" in server.headers[0]
  written = [path for path in tmp_path.rglob("*") if path.is_file()]
  assert len(written) == 2 + 4
  assert not any(key in path.read_text() for path in written)


@pytest.mark.parametrize(
  ("output", "keywords", "message"),
  [
    ("o.jsonl", {"runner_options": ["num_worker=3"]}, "no option 'num_worker'; did you mean"),
    ("o.jsonl", {"runner_options": ["direct_num_workers=x"]}, "invalid int value: 'x'"),
    ("o.jsonl", {"request_config": RequestConfig(budget_tokens=9)}, "cannot share a budget"),
    ("none/o.jsonl", {}, "its folder does not exist"),
    ("o.jsonl", {"runner": "DataflowRunner"}, "write to a bucket; give a URL like gs://"),
    ("memory://b/o.jsonl", {"runner": "DataflowRunner"}, "--runner DataflowRunner: "),
    ("o.jsonl", {"runner": None, "runner_options": ["a=b"]}, "needs --runner"),
  ],
)
def test_invalid_options(output, keywords, message, annotated, server):
  with pytest.raises(UserError, match=message) as error:
    annotated(output, **{"runner": "DirectRunner", **keywords})
  assert "\n" not in str(error.value)
  assert not server.requests
