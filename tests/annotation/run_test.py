"""Annotation runs: order, resuming, concurrency, budget, cost, memory, errors."""

import pathlib
import tracemalloc

import pytest

from dss_jax.annotation import journal
from dss_jax.annotation import run as annotate_module
from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.prompts import Prompt
from dss_jax.annotation.run import RequestConfig, annotate, journal_path
from dss_jax.annotation.usage import Prices
from dss_jax.data.records import read_rows
from dss_jax.teachers.base import TeacherResponse


def test_output_keeps_order_and_other_keys(server, quick_teacher, svamp_prompt, numbered, tmp_path):
  server.latency = lambda row: 0.03 if row % 3 == 0 else 0.0
  rows = [{**row, "id": n} for n, row in enumerate(numbered(60))]
  rows[7] = {"input_text": "done", "output_text": "(1 + 1)", "rationale": "It is."}
  annotate(lambda: rows, tmp_path / "o.jsonl", quick_teacher(), svamp_prompt, AnnotationConfig())
  written = list(read_rows(tmp_path / "o.jsonl"))
  assert [row.get("id") for row in written] == [n if n != 7 else None for n in range(60)]
  assert written[7] == {**rows[7], "provenance": {"status": "untouched"}}
  assert len(server.requests) == 59


def test_a_second_run_sends_only_new_requests(
  server, quick_teacher, svamp_prompt, numbered, tmp_path
):
  rows = numbered(50)
  arguments = (tmp_path / "o.jsonl", quick_teacher(), svamp_prompt, AnnotationConfig())
  first = annotate(lambda: rows, *arguments)
  written = (tmp_path / "o.jsonl").read_bytes()
  arguments = (tmp_path / "o.jsonl", quick_teacher(), svamp_prompt, AnnotationConfig())
  second = annotate(lambda: rows, *arguments)
  assert len(server.requests) == first["requests"] == 50
  assert (second["requests"], second["answers_from_journal"]) == (0, 50)
  assert (tmp_path / "o.jsonl").read_bytes() == written
  # Other rows in another order: only the new row is requested.
  rows = [{"input_text": "row 100 and more?"}, *rows[::-1]]
  annotate(lambda: rows, tmp_path / "o.jsonl", quick_teacher(), svamp_prompt, AnnotationConfig())
  assert len(server.requests) == 51


def test_a_changed_prompt_or_temperature_sends_new_requests(
  server, quick_teacher, svamp_prompt, numbered, tmp_path
):
  import dataclasses

  rows = numbered(5)
  changed = dataclasses.replace(svamp_prompt, instruction="Another.")
  warm = AnnotationConfig(temperature=0.5)
  for prompt, config, asked in (
    (svamp_prompt, AnnotationConfig(), 5),
    (changed, AnnotationConfig(), 10),
    (svamp_prompt, warm, 15),
    (svamp_prompt, AnnotationConfig(), 15),
    (svamp_prompt, AnnotationConfig(temperature=0.5, samples=3), 25),
  ):
    annotate(lambda: rows, tmp_path / "o.jsonl", quick_teacher(), prompt, config)
    assert len(server.requests) == asked


def test_equal_rows_share_one_request(server, quick_teacher, svamp_prompt, numbered, tmp_path):
  server.latency = lambda row: 0.02
  rows = numbered(3) * 20
  annotate(lambda: rows, tmp_path / "o.jsonl", quick_teacher(), svamp_prompt, AnnotationConfig())
  assert sorted(row for row, _ in server.requests) == [0, 1, 2]
  written = [row["output_text"] for row in read_rows(tmp_path / "o.jsonl")]
  assert written == ["(0 + 1)", "(1 + 1)", "(2 + 1)"] * 20


def test_requests_in_flight_are_limited(server, quick_teacher, svamp_prompt, numbered, tmp_path):
  server.latency = lambda row: 0.01
  rows = numbered(60)
  request_config = RequestConfig(max_requests_in_flight=5)
  annotate(
    lambda: rows,
    tmp_path / "o.jsonl",
    quick_teacher(),
    svamp_prompt,
    AnnotationConfig(),
    request_config,
  )
  assert server.most_in_flight == 5


def test_the_budget_is_kept_and_a_larger_one_continues(
  server, quick_teacher, svamp_prompt, numbered, tmp_path
):
  rows = numbered(40)
  # The server counts 120 tokens per answer; a request reserves more.
  spent = []
  for budget in (3000, 3000, 10_000):
    request_config = RequestConfig(budget_tokens=budget, max_requests_in_flight=4)
    report = annotate(
      lambda: rows,
      tmp_path / "o.jsonl",
      quick_teacher(),
      svamp_prompt,
      AnnotationConfig(),
      request_config,
    )
    assert report["tokens_spent"] <= budget
    spent.append((report["tokens_spent"], report["statuses"]["unasked"]))
    assert report["statuses"]["answered"] + report["statuses"]["unasked"] == 40
  assert spent[0][1] > 10
  assert spent[0][0] > 2000
  assert spent[1][0] >= spent[0][0]
  assert spent[2] == (40 * 120, 0)
  assert len(server.requests) == 40


def test_cost(server, quick_teacher, svamp_prompt, numbered, tmp_path):
  rows = numbered(10)
  request_config = RequestConfig(prices=Prices(2.0, 10.0))
  report = annotate(
    lambda: rows,
    tmp_path / "o.jsonl",
    quick_teacher(),
    svamp_prompt,
    AnnotationConfig(),
    request_config,
  )
  assert report["cost"] == pytest.approx(10 * (100 * 2 + 20 * 10) / 1e6)


class _Echo:
  """A teacher without a server that answers at once."""

  name, is_recorded, retries = "echo", False, 0

  def __init__(self, on_ask=lambda request: None):
    self.on_ask = on_ask

  async def ask(self, request):
    self.on_ask(request)
    return TeacherResponse("It is so.\nAnswer: yes", "stop", 10, 5)

  async def close(self):
    pass


def test_memory_is_constant(tmp_path, monkeypatch):
  """Eight times the rows need no more memory, because rows are streamed."""
  monkeypatch.setattr(annotate_module, "LOOK_AHEAD_ROWS", 128)
  monkeypatch.setattr(journal, "_MAX_RECENT", 128)
  prompt = Prompt(instruction="Say.")

  def peak(count):
    def rows():
      for number in range(count):
        yield {"input_text": f"{number} " + "x" * 300}

    tracemalloc.start()
    annotate(rows, tmp_path / f"{count}.jsonl", _Echo(), prompt, AnnotationConfig())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most

  few, many = peak(300), peak(2400)
  # A fraction of the memory of the rows' texts.
  assert many - few < 60 * (2400 - 300)


def test_an_unexpected_error_ends_the_run_without_output(tmp_path):
  def fails(request):
    if request.index == 70:
      raise ZeroDivisionError("a bug")

  rows = [{"input_text": f"{n}"} for n in range(3000)]
  with pytest.raises(ZeroDivisionError):
    annotate(
      lambda: rows,
      tmp_path / "o.jsonl",
      _Echo(fails),
      Prompt(instruction="Say."),
      AnnotationConfig(),
    )
  assert {path.name for path in tmp_path.iterdir()} == {"o.jsonl.answers.jsonl"}
  # The journal is unlocked, and its answers are used.
  report = annotate(
    lambda: rows, tmp_path / "o.jsonl", _Echo(), Prompt(instruction="Say."), AnnotationConfig()
  )
  assert report["answers_from_journal"] >= 69


def test_the_state_of_the_journal_is_printed(tmp_path, capfd):
  rows = [{"input_text": f"{n}"} for n in range(3)]
  arguments = (tmp_path / "o.jsonl", _Echo(), Prompt(instruction="Say."), AnnotationConfig())
  annotate(lambda: rows, *arguments)
  first = capfd.readouterr().err
  assert "earlier run" not in first
  assert "damaged" not in first
  path = pathlib.Path(journal_path(tmp_path / "o.jsonl"))
  path.write_text("".join(["junk\n", *path.read_text().splitlines(keepends=True)[:2]]))
  report = annotate(lambda: rows, *arguments)
  err = capfd.readouterr().err
  assert f"2 answers of an earlier run are in {path}\n" in err
  assert f"warning: {path}: 1 lines are damaged; their requests are sent again\n" in err
  assert (report["requests"], report["answers_from_journal"]) == (1, 2)


def test_journal_path():
  assert journal_path("a/o.jsonl") == "a/o.jsonl.answers.jsonl"
