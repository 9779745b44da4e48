"""Annotation with a faulty server: no answer is lost or requested twice."""

import itertools
import json
import pathlib
import random
import re
import subprocess
import sys

import pytest

from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.run import RequestConfig, annotate, journal_path
from dss_jax.data.records import read_rows, write_rows
from dss_jax.errors import UserError
from tests.fixtures.teacher_server import QUICK

QUICK_REQUESTS = RequestConfig(retry_policy=QUICK)

ROWS = 1000
HUGE = b'{"choices": [{"message": {"content": "' + b"x" * 2**20 + b'"}}]}'
# Faults of the first attempt, by the last two digits of the row.
ONCE = {
  1: (500, b"oops", ()),
  3: "reset",
  4: (200, b'{"choices": [{"mess', ()),
  5: (200, b"", ()),
  6: (200, b"<html>busy</html>", ("content-type: text/html",)),
  7: (503, b'{"error": {"message": "busy"}}', ()),
  8: (200, b'{"choices": []}', ()),
  9: (200, b'{"choices": [{"message": {"content": 7}}]}', ()),
  11: "hang up",
}
# Faults of every attempt, and the reason in the provenance.
ALWAYS = {
  93: ("endless", r"more than 1,048,576 bytes"),
  94: ((200, HUGE, ()), r"more than 1,048,576 bytes"),
  95: ((200, b"[" * 100_000, ()), r"the response is not JSON: \[+ \(4 attempts\)"),
  96: ((500, b"\xff\xfe", ()), r"HTTP 500.*\(4 attempts\)"),
  97: ((400, b'{"error": {"message": "too long"}}', ()), r"^HTTP 400 too long$"),
  98: ((200, b"x", ("content-encoding: gzip",)), r"compressed"),
}


def _fault(row, attempt):
  if row == 10 and attempt == 0:
    return "hang"
  if row == 20 and attempt == 0:
    return "trickle"
  if row in (30, 630) and attempt < 2:
    return (429, b'{"error": {"message": "slow down"}}', ("retry-after-ms: 150",))
  kind = row % 100
  if kind in ALWAYS:
    return ALWAYS[kind][0]
  return ONCE.get(kind) if attempt == 0 else None


def test_every_fault_gives_its_status(server, quick_teacher, svamp_prompt, numbered, tmp_path):
  server.fault = _fault
  server.latency = lambda row: random.uniform(0, 0.02)
  good_answer = server.answer
  server.answer = lambda row: "" if row == 40 else good_answer(row)
  rows = numbered(ROWS)
  output = tmp_path / "out.jsonl"
  report = annotate(
    lambda: rows, output, quick_teacher(), svamp_prompt, AnnotationConfig(), QUICK_REQUESTS
  )
  written = list(read_rows(output))
  assert [row["input_text"] for row in written] == [row["input_text"] for row in rows]
  for number, row in enumerate(written):
    provenance = row["provenance"]
    if number % 100 in ALWAYS:
      assert provenance["status"] == "failed"
      assert re.search(ALWAYS[number % 100][1], provenance["reason"])
      assert "output_text" not in row
      assert "rationale" not in row
      assert server.completed[number] == 0
    elif number == 40:
      assert (provenance["status"], provenance["reason"]) == ("unparsable", "the answer is empty")
    else:
      assert provenance["status"] == "answered"
      assert row["output_text"] == f"({number} + 1)"
      assert row["rationale"] == f"There are {number} and 1 more. {number} + 1 is {number + 1}."
      assert provenance["samples"][0]["raw"] == good_answer(number)
  assert all(server.completed[n] == 1 for n in range(ROWS) if n % 100 not in ALWAYS)
  assert report["statuses"] == {
    "failed": 60, "unasked": 0, "unparsable": 1, "undecided": 0, "answered": 939, "untouched": 0,
  }  # fmt: skip
  # The server also counts hanging and slow requests that the client has given up.
  assert server.most_in_flight <= 2 * 32
  # After a 429 the row waits for Retry-After.
  rate_limited = [time for row, time in server.requests if row == 30]
  assert len(rate_limited) == 3
  assert all(later - earlier >= 0.15 for earlier, later in itertools.pairwise(rate_limited))

  # A second run requests the failed rows and no others.
  server.fault = lambda row, attempt: None
  asked = len(server.requests)
  report = annotate(
    lambda: rows, output, quick_teacher(), svamp_prompt, AnnotationConfig(), QUICK_REQUESTS
  )
  assert sorted(row for row, _ in server.requests[asked:]) == [
    n for n in range(ROWS) if n % 100 in ALWAYS
  ]
  assert report["statuses"]["failed"] == 0
  assert report["answers_from_journal"] == 940


def test_a_run_killed_ten_times_loses_nothing(server, numbered, tmp_path):
  """SIGKILL at random moments: no answer in the journal is lost or requested again."""
  server.latency = lambda row: random.uniform(0.005, 0.03)
  data, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  write_rows(data, numbered(ROWS))
  driver = subprocess.Popen(
    [sys.executable, pathlib.Path(__file__).with_name("killed_run.py"), data, output, server.url],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  with driver:
    kept, most_repeated = set(), 0
    for _ in range(10):
      before = len(server.requests)
      # Long enough for some answers, too short for all.
      driver.stdin.write(f"{random.uniform(0.02, 0.25)}\n")
      driver.stdin.flush()
      outcome = driver.stdout.readline().strip()
      assert outcome == "killed", "the run ended before ten kills: use shorter times"
      assert not output.exists()
      server.wait_until_idle()
      asked = [row for row, _ in server.requests[before:]]
      assert len(asked) == len(set(asked))
      assert not set(asked) & kept
      kept = _kept(output)
      most_repeated = max(most_repeated, len(set(asked) - kept))
    assert most_repeated <= 32
    driver.stdin.write("600\n")
    driver.stdin.flush()
    assert driver.stdout.readline().strip() == "ended"
    driver.stdin.close()
  counts = [row for row, _ in server.requests]
  assert set(counts) == set(range(ROWS))
  assert len(counts) <= ROWS + 10 * 32
  written = list(read_rows(output))
  assert [row["output_text"] for row in written] == [f"({row} + 1)" for row in range(ROWS)]
  lines = pathlib.Path(journal_path(output)).read_text().splitlines()
  assert len({json.loads(line)["key"] for line in lines}) == len(lines) == ROWS


def _kept(output):
  """Returns the rows with a complete line in the journal."""
  path = pathlib.Path(journal_path(output))
  whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
  return {int(re.search(r"answer is \((\d+)", line)[1]) for line in whole.splitlines()}


@pytest.mark.parametrize(
  ("status", "answered", "failures"), [(500, 0, 8), (500, 100, 64), (403, 0, 8), (403, 100, 8)]
)
def test_consecutive_failures_end_the_run(
  status, answered, failures, server, quick_teacher, svamp_prompt, numbered, tmp_path
):
  """The limit is 8, and 64 for failures that may pass if the server has answered before."""
  server.fault = lambda row, attempt: (
    (status, f'{{"error": "down, id {row}"}}'.encode(), ()) if row >= answered else None
  )
  rows = numbered(500)
  with pytest.raises(UserError, match=f"{failures} consecutive requests failed.*HTTP {status}"):
    annotate(
      lambda: rows,
      tmp_path / "out.jsonl",
      quick_teacher(),
      svamp_prompt,
      AnnotationConfig(),
      RequestConfig(max_requests_in_flight=16, retry_policy=QUICK),
    )
  assert not (tmp_path / "out.jsonl").exists()
  assert len({row for row, _ in server.requests}) < answered + failures + 2 * 16


def test_refused_rows_are_set_aside(server, quick_teacher, svamp_prompt, numbered, tmp_path):
  """Also many, as long as 8 in a row do not have the same reason; with keep_going, then, too."""
  words = json.dumps({"error": {"message": "flagged"}}).encode()
  server.fault = lambda row, attempt: (403, words, ()) if row % 8 else None
  rows = numbered(40)
  arguments = (svamp_prompt, AnnotationConfig())
  one = RequestConfig(max_requests_in_flight=1)
  report = annotate(lambda: rows, tmp_path / "o.jsonl", quick_teacher(), *arguments, one)
  assert (report["statuses"]["failed"], report["statuses"]["answered"]) == (35, 5)
  assert list(read_rows(tmp_path / "o.jsonl"))[1]["provenance"]["reason"] == "HTTP 403 flagged"
  server.fault = lambda row, attempt: (403, words, ())
  going = RequestConfig(max_requests_in_flight=1, keep_going=True)
  report = annotate(lambda: rows, tmp_path / "p.jsonl", quick_teacher(), *arguments, going)
  assert report["statuses"]["failed"] == 40


def test_a_run_whose_first_answers_do_not_parse_stops(
  server, quick_teacher, svamp_prompt, numbered, tmp_path, capfd
):
  server.answer = lambda row: f"I cannot say.\x1b[31m {row}"
  rows = numbered(100)
  arguments = (tmp_path / "o.jsonl", quick_teacher(), svamp_prompt, AnnotationConfig())
  with pytest.raises(UserError, match=r"none of the first 20 answers parses \(20 times: no"):
    annotate(lambda: rows, *arguments)
  assert len(server.requests) == 20
  assert not (tmp_path / "o.jsonl").exists()
  err = capfd.readouterr().err
  assert err.count("I cannot say. [31m") == 3
  assert "\x1b" not in err
  # The answers are kept: the second run stops before it sends anything.
  arguments = (tmp_path / "o.jsonl", quick_teacher(), svamp_prompt, AnnotationConfig())
  with pytest.raises(UserError, match="--keep-going"):
    annotate(lambda: rows, *arguments)
  assert len(server.requests) == 20
  arguments = (tmp_path / "o.jsonl", quick_teacher(), svamp_prompt, AnnotationConfig())
  report = annotate(lambda: rows, *arguments, RequestConfig(keep_going=True))
  assert (report["statuses"]["unparsable"], report["answers_from_journal"]) == (100, 20)


@pytest.mark.parametrize("good", [0, 7, 19])
def test_one_useful_answer_of_the_first_is_enough(
  good, server, quick_teacher, svamp_prompt, numbered, tmp_path
):
  """Failed requests are no answers."""
  good_answer = server.answer
  server.answer = lambda row: good_answer(row) if row == good else "I cannot say."
  server.fault = lambda row, attempt: (400, b"flagged", ()) if 20 <= row < 24 else None
  rows = numbered(60)
  report = annotate(
    lambda: rows, tmp_path / "o.jsonl", quick_teacher(), svamp_prompt, AnnotationConfig()
  )
  statuses = report["statuses"]
  assert (statuses["answered"], statuses["unparsable"], statuses["failed"]) == (1, 55, 4)
