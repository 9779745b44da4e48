"""`dss annotate` as a user runs it."""

import json
import subprocess
import sys
import typing

import pytest

from dss_jax.annotation.annotate_file import TeacherOptions
from dss_jax.annotation.filters import CONCERNS
from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.run import RequestConfig
from dss_jax.annotation.teacher_settings import annotation_settings
from dss_jax.config.schema import Concern, TeacherConfig
from dss_jax.data.records import read_rows, write_rows

MAIN = "import sys; from dss_jax.cli.main import main; sys.argv[0] = 'dss'; main()"


@pytest.fixture
def dss(monkeypatch, capsys):
  """A function that runs `dss` in this process: (exit code, output, errors)."""

  def run(*arguments):
    from dss_jax.cli.main import main

    monkeypatch.setattr(sys, "argv", ["dss", *map(str, arguments)])
    try:
      main()
      code = 0
    except SystemExit as error:
      code = error.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err

  return run


def test_annotate_report_and_page(dss, server, numbered, tmp_path, monkeypatch):
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  data, output, page = tmp_path / "in.jsonl", tmp_path / "o.jsonl", tmp_path / "p.html"
  write_rows(data, numbered(20))
  server.fault = lambda row, attempt: (400, b'{"error": "no"}', ()) if row == 3 else None
  code, out, err = dss(
    "annotate", data, "--teacher", "openai:served", "--teacher-url", server.url,
    "--output", output, "--prompt", "svamp", "--prices", 1, 2, "--max-requests-in-flight", 4,
  )  # fmt: skip
  assert code == 0, err
  figures = json.loads(out)
  assert figures["statuses"]["answered"] == 19
  assert figures["cost"] == pytest.approx(19 * (100 + 2 * 20) / 1e6)
  assert "annotating 20/20" in err
  assert server.most_in_flight <= 4
  assert len(list(read_rows(output))) == 20
  code, out, _ = dss("annotate", "report", output, "--html", page)
  assert code == 0
  assert "failed: HTTP 400 no (line 4)" in out
  assert page.read_text().startswith("<!doctype html>")
  code, again, _ = dss("annotate", "report", output, "--json")
  assert json.loads(again)["statuses"] == figures["statuses"]


def test_flags_are_applied(dss, server, numbered, tmp_path, monkeypatch):
  monkeypatch.setenv("MY_KEY", "sk-0123456789")
  write_rows(tmp_path / "in.jsonl", [{**row, "output_text": "(9 + 9)"} for row in numbered(4)])
  code, out, err = dss(
    "annotate", tmp_path / "in.jsonl", "--teacher", "openai:served", "--teacher-url", server.url,
    "--teacher-key-env", "MY_KEY", "--output", tmp_path / "o.jsonl", "--prompt", "svamp",
    "--teacher-labels", "teacher", "--samples", 3, "--temperature", 0.7, "--rationales-per-row", 2,
    "--api", "completion", "--filter", "gold", "--filter", "echo", "--min-agreement", 0.9,
    "--rationale-words", 5, 50, "--timeout-seconds", 20, "--attempts", 2,
  )  # fmt: skip
  assert code == 0, err
  assert len(server.requests) == 12
  assert server.bodies[0]["temperature"] == 0.7
  assert "prompt" in server.bodies[0]
  assert "Bearer sk-0123456789" in server.headers[0]
  row = next(iter(read_rows(tmp_path / "o.jsonl")))
  assert row["provenance"]["dropped_for"] == ["gold"]
  assert row["provenance"]["gold_label"] == "(9 + 9)"
  assert "output_text" not in row
  assert json.loads(out)["rows_that_lost_their_rationale"] == 4


def test_dry_run_sends_nothing(dss, server, numbered, tmp_path):
  write_rows(tmp_path / "in.jsonl", numbered(5))
  code, out, _ = dss(
    "annotate", tmp_path / "in.jsonl", "--teacher", "openai:m", "--teacher-url", server.url,
    "--dry-run", "--prices", 1, 1,
  )  # fmt: skip
  assert code == 0
  assert out.count("----- prompt ") == 3
  assert json.loads(out.splitlines()[-1])["expected_cost"] > 0
  assert not server.requests


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--teacher", "openai:m"], "give --output OUT.jsonl, or --dry-run"),
    (["--output", "o.jsonl"], "Missing option '--teacher'"),
    (["--teacher", "openai:m", "--output", "o.jsonl", "--filter", "x"], "Invalid value"),
    (["--teacher", "openai:m", "--output", "o.jsonl", "--samples", "0"], "from 1 to 1000"),
    (["--teacher", "openai:m", "--output", "o.jsonl", "--timeout-seconds", "0"], "at least 0.001"),
    (
      ["--teacher", "openai:m", "--output", "o.jsonl", "--rationale-words", "-1", "9"],
      "at least 0",
    ),
    (["--teacher", "openai:m", "--output", "o.jsonl"], "OPENAI_API_KEY is not set"),
  ],
)
def test_invalid_flags(arguments, message, dss, numbered, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  write_rows("in.jsonl", numbered(3))
  code, out, err = dss("annotate", "in.jsonl", *arguments)
  assert (code, out) == (2, "")
  assert message in err
  assert "Traceback" not in err


def test_the_schema_names_every_concern():
  assert typing.get_args(Concern) == tuple(CONCERNS)


def test_the_schema_s_defaults_are_the_library_s():
  assert annotation_settings(TeacherConfig(name="openai:m")) == (
    TeacherOptions(teacher="openai:m"),
    AnnotationConfig(),
    RequestConfig(),
  )


def test_help_imports_nothing_heavy():
  heavy = "jax numpy seqio tensorflow aiohttp yaml"
  code = f"{MAIN[:-8]}\ntry: main()\nexcept SystemExit: pass\n" + (
    f"print([name for name in {heavy.split()!r} if name in sys.modules])"
  )
  for arguments in (["--help"], ["annotate", "--help"], ["annotate", "report", "--help"]):
    result = subprocess.run(
      [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


def test_aiohttp_may_be_missing(dss, numbered, tmp_path, monkeypatch):
  write_rows(tmp_path / "in.jsonl", numbered(3))
  monkeypatch.setitem(sys.modules, "aiohttp", None)
  monkeypatch.delitem(sys.modules, "dss_jax.teachers.http", raising=False)
  code, _, err = dss(
    "annotate", tmp_path / "in.jsonl", "--teacher", "openai:m", "--output", tmp_path / "o.jsonl",
    "--prompt", "svamp",
  )  # fmt: skip
  assert code == 2
  assert "aiohttp is not installed (aiohttp); pip install 'dss-jax[teacher]'" in err


def test_beam_may_be_missing(dss, server, numbered, tmp_path, monkeypatch):
  write_rows(tmp_path / "in.jsonl", numbered(3))
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  monkeypatch.delitem(sys.modules, "dss_jax.annotation.beam_runner", raising=False)
  code, out, err = dss(
    "annotate", tmp_path / "in.jsonl", "--teacher", "openai:m", "--teacher-url", server.url,
    "--prompt", "svamp", "--output", tmp_path / "o.jsonl", "--runner", "DirectRunner",
  )  # fmt: skip
  assert (code, out) == (2, "")
  assert err == (
    "dss: --runner DirectRunner: Apache Beam is not installed (apache_beam);"
    " pip install 'dss-jax[beam]'\n"
  )
  assert not server.requests
