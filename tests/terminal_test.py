"""What is printed: no control characters of data, any encoding, closed and full streams."""

import os
import pathlib
import subprocess
import sys

import pytest

from dss_jax.terminal import echo, printable

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

HELP = [sys.executable, "-m", "dss_jax.cli.main", "--help"]
# The report has the label, which no 8-bit encoding and no line of a terminal can hold.
VALIDATE = [sys.executable, "-m", "dss_jax.cli.main", "validate", "rows.jsonl"]
ROW = '{"input_text": "a", "output_text": "\u597d\\u001b[31m\\u202e"}\n'


@pytest.fixture
def dss(tmp_path):
  """Runs a command in a folder with rows.jsonl, through a shell's redirections."""
  (tmp_path / "rows.jsonl").write_text(ROW * 6, encoding="utf-8")

  def dss(command, redirections="", **variables):
    # bash, which tells the exit codes of a pipe's parts.
    line = f'"$@" {redirections}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(
      ["bash", "-c", line, "dss", *command],
      cwd=tmp_path,
      capture_output=True,
      env={**os.environ, "PYTHONPATH": str(REPOSITORY), **variables},
    )

  return dss


@pytest.mark.parametrize(
  ("text", "shown"),
  [
    ("plain, zw\u00f6lf, \u597d, \U0001f600", "plain, zw\u00f6lf, \u597d, \U0001f600"),
    ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ("\x1b[2J\x07\r\x9b", "\\x1b[2J\\x07\\r\\x9b"),
    ("\u202eabc\u2066\u200f", "\\u202eabc\\u2066\\u200f"),
    ("\u200b\u00ad\ufeff\u2028", "\\u200b\\xad\\ufeff\\u2028"),
    ("half \ud83d", "half \\ud83d"),
    ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
  ],
)
def test_what_a_terminal_obeys_is_escaped(text, shown, capsys):
  assert printable(text) == shown
  echo(text)
  assert capsys.readouterr().out == shown + "\n"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
def test_a_report_is_printed_in_any_encoding(dss, encoding):
  result = dss(VALIDATE, PYTHONIOENCODING=encoding)
  assert (result.returncode, result.stderr) == (0, b"")
  label = "\u597d" if encoding == "utf-8" else "\\u597d"
  assert f'"{label}\\x1b[31m\\u202e" 100.0%' in result.stdout.decode("utf-8")


@pytest.mark.parametrize("command", [HELP, VALIDATE])
def test_a_full_or_closed_output_is_one_sentence(dss, command):
  for redirection in (">/dev/full", ">&-"):
    result = dss(command, redirection)
    assert result.returncode == 2, redirection
    assert result.stderr.startswith(b"dss: standard output cannot be written (")
    assert result.stderr.count(b"\n") == 1


def test_a_reader_that_has_gone_ends_the_command_quietly(dss):
  result = dss(VALIDATE, "| true")
  assert (result.returncode, result.stderr) == (141, b"")


def test_notes_that_cannot_be_written_do_not_end_a_command(dss):
  for redirections in ("2>/dev/full", "2>&-", "<&- 2>&-"):
    result = dss([*VALIDATE[:-1], "absent"], redirections)
    assert (result.returncode, result.stdout) == (2, b""), redirections
    result = dss(VALIDATE, redirections)
    assert result.returncode == 0
    assert result.stdout.startswith(b"rows.jsonl\n")
