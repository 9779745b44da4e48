"""The HTTP teacher: requests, responses, retries, and the key, which is never written."""

import asyncio
import dataclasses
import email.utils
import json
import time

import pytest

from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.run import annotate
from dss_jax.errors import UserError
from dss_jax.teachers import http as http_client
from dss_jax.teachers.base import RequestFailed, TeacherRequest
from dss_jax.teachers.http import HttpTeacher, RetryPolicy

KEY = "sk-secret-0123456789abcdef"


def _request(row=1, **changes):
  text = f"row {row}"
  request = TeacherRequest(row, text, [{"role": "user", "content": text}], text, ("\nQ:",), 7, 0.5)
  return dataclasses.replace(request, **changes)


def _ask(teacher, request=None):
  async def ask():
    try:
      return await teacher.ask(request or _request())
    finally:
      await teacher.close()

  return asyncio.run(ask())


def test_chat(server, quick_teacher):
  response = _ask(quick_teacher())
  assert response.text == server.answer(1)
  assert (response.prompt_tokens, response.completion_tokens, response.finish) == (100, 20, "stop")
  assert server.bodies == [
    {
      "model": "served",
      "temperature": 0.5,
      "max_tokens": 7,
      "messages": [{"role": "user", "content": "row 1"}],
      "stop": ["\nQ:"],
    }
  ]
  assert server.headers[0].startswith("POST /v1/chat/completions ")


def test_completion(server, quick_teacher):
  response = _ask(quick_teacher(api="completion"))
  assert response.text == server.answer(1)
  assert server.headers[0].startswith("POST /v1/completions ")
  assert server.bodies[0]["prompt"] == "row 1"
  assert "messages" not in server.bodies[0]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_statuses_that_are_retried(status, server, quick_teacher):
  server.fault = lambda row, attempt: (status, b"{}", ()) if attempt < 3 else None
  teacher = quick_teacher()
  assert _ask(teacher).text == server.answer(1)
  assert teacher.retries == 3


@pytest.mark.parametrize("status", [400, 413, 422])
def test_statuses_that_fail_at_once(status, server, quick_teacher):
  server.fault = lambda row, attempt: (status, b'{"error": "no\\nthanks"}', ())
  with pytest.raises(RequestFailed, match=f"^HTTP {status} no thanks$"):
    _ask(quick_teacher())
  assert len(server.requests) == 1


@pytest.mark.parametrize(
  ("status", "mend"),
  [(401, "set OPENAI_API_KEY"), (403, "the key has no access"), (404, "no such model or path")],
)
def test_statuses_that_end_the_run(status, mend, server, quick_teacher):
  server.fault = lambda row, attempt: (status, b"{}", ())
  with pytest.raises(UserError, match=mend):
    _ask(quick_teacher())


def test_a_redirect_is_not_followed(server, quick_teacher):
  server.fault = lambda row, attempt: (307, b"", (f"location: {server.url}/elsewhere",))
  with pytest.raises(RequestFailed, match="HTTP 307"):
    _ask(quick_teacher())
  assert len(server.requests) == 1


def test_backoff_and_retry_after(server, quick_teacher, monkeypatch):
  waits = []
  sleep = asyncio.sleep

  async def record(seconds):
    waits.append(seconds)
    await sleep(0)

  class _Asyncio:
    timeout = staticmethod(asyncio.timeout)
    sleep = staticmethod(record)

  clock = [0.0]

  class _Time:
    time = staticmethod(time.time)

    @staticmethod
    def monotonic():
      # Time advances by sleeping only.
      clock[0] = sum(waits)
      return clock[0]

  monkeypatch.setattr(http_client, "asyncio", _Asyncio)
  monkeypatch.setattr(http_client, "time", _Time)
  in_an_hour = email.utils.formatdate(time.time() + 100, usegmt=True)
  headers = [(), (), ("retry-after: 7",), (f"retry-after: {in_an_hour}",), ("retry-after: junk",)]
  server.fault = lambda row, attempt: (429, b"{}", headers[attempt]) if attempt < 5 else None
  _ask(quick_teacher(RetryPolicy(attempts=6, base_wait_seconds=1.0, longest_wait_seconds=3.0)))
  first, second, third, fourth, *rest = waits
  assert 0.5 <= first <= 1.0 <= second <= 2.0
  assert 7.0 <= third <= 7.7
  assert 97.0 <= fourth <= 110.0
  # An invalid header is ignored: the backoff continues, at most 3 seconds.
  assert 1.5 <= rest[-1] <= 3.0


def test_retry_after_applies_to_all_requests(server, quick_teacher):
  """A request that starts after the 429 of another one waits as well."""
  retry_policy = RetryPolicy(base_wait_seconds=0.0, timeout_seconds=30)
  rate_limited = (429, b"{}", ("retry-after-ms: 300",))
  server.fault = lambda row, attempt: rate_limited if row == 1 and attempt == 0 else None
  teacher = quick_teacher(retry_policy)

  async def ask_two():
    first = asyncio.create_task(teacher.ask(_request(1)))
    while not teacher.retries:
      await asyncio.sleep(0.001)
    await teacher.ask(_request(2))
    await first
    await teacher.close()

  asyncio.run(ask_two())
  times = dict(reversed(server.requests))
  assert times[2] - times[1] >= 0.29


def test_a_too_long_retry_after_fails_the_request(server, quick_teacher):
  server.fault = lambda row, attempt: (429, b'{"message": "quota"}', ("retry-after: 3600",))
  with pytest.raises(RequestFailed, match="HTTP 429 quota"):
    _ask(quick_teacher())
  assert len(server.requests) == 1


def test_no_server(server, quick_teacher):
  teacher = quick_teacher(RetryPolicy(attempts=2, base_wait_seconds=0.0))
  server.close()
  with pytest.raises(RequestFailed, match=r"the connection failed: .*\(2 attempts\)"):
    _ask(teacher)


@pytest.mark.parametrize(
  ("fault", "reason"),
  [
    ("hang up", r"the connection failed: ServerDisconnectedError"),
    ("reset", r"the connection failed: \w+: "),
    ("trickle", "no complete response within 0.2 seconds"),
    ((200, b"{}", ("content-type application/json",)), "the connection failed: .*header"),
    ((200, b"<html>busy</html>", ("content-type: text/html",)), "the response is not JSON"),
    ((200, b'"yes"', ()), "the response is JSON, but not a completion"),
    ((502, "oops \u2713\n".encode(), ()), "HTTP 502 oops \u2713 "),
  ],
)
def test_failure_reasons(fault, reason, server, quick_teacher):
  server.fault = lambda row, attempt: fault
  retry_policy = RetryPolicy(timeout_seconds=0.2, attempts=2, base_wait_seconds=0.0)
  with pytest.raises(RequestFailed, match=rf"^{reason}.*\(2 attempts\)$"):
    _ask(quick_teacher(retry_policy))
  assert len(server.requests) == 2


def test_the_proxy_of_the_environment_is_used(server, monkeypatch):
  """The test server is the proxy; a proxy request has the whole URL in its first line."""
  monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  for url, line in (
    ("http://near.example/v1", "POST http://near.example/v1/chat/completions "),
    (server.url, "POST /v1/chat/completions "),
  ):
    assert _ask(HttpTeacher("m", url=url)).text == server.answer(1)
    assert server.headers[-1].startswith(line)


@pytest.mark.parametrize(
  ("body", "text"),
  [
    ({"choices": [{"message": {"content": None}}]}, ""),
    ({"choices": [{"message": {"content": "a\ud800b"}, "finish_reason": 3}], "usage": []}, "a?b"),
    ({"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": -1}}, "a"),
  ],
)
def test_unusual_bodies(body, text, server, quick_teacher):
  server.fault = lambda row, attempt: (200, json.dumps(body).encode(), ())
  response = _ask(quick_teacher())
  assert response.text == text
  assert (response.prompt_tokens, response.completion_tokens, response.finish) == (None, None, None)


@pytest.mark.parametrize(
  ("url", "message"),
  [
    ("localhost:8000/v1", "not a valid URL"),
    ("ftp://host/v1", "not a valid URL"),
    ("http://[::1/v1", "not a valid URL"),
    (f"http://user:{KEY}@host/v1", "contains a user name"),
    (f"http://host/v1?key={KEY}", "contains a user name, password or query"),
  ],
)
def test_invalid_urls(url, message):
  with pytest.raises(UserError, match=message) as error:
    HttpTeacher("m", url=url)
  assert KEY not in str(error.value)


def test_missing_and_invalid_keys(monkeypatch):
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
    HttpTeacher("m")
  with pytest.raises(UserError, match="MINE is not set"):
    HttpTeacher("m", url="http://127.0.0.1:1/v1", key_env="MINE")
  for bad in ("short", "with a space 123", "n\u00f6n-ascii-key"):
    monkeypatch.setenv("MINE", bad)
    with pytest.raises(UserError, match="MINE: the value is not a key") as error:
      HttpTeacher("m", url="http://127.0.0.1:1/v1", key_env="MINE")
    assert bad not in str(error.value)


def test_the_key_is_only_in_requests(
  server, quick_teacher, svamp_prompt, numbered, tmp_path, monkeypatch, capfd, caplog
):
  """If the server repeats the key in answers and errors, no output contains it."""
  caplog.set_level("DEBUG")
  monkeypatch.setenv("MY_KEY", KEY)
  echo = json.dumps({"error": {"message": f"bad key {KEY}"}}).encode()
  faults = {1: (400, echo, ()), 2: (500, KEY.encode(), ()), 3: (429, echo, ())}
  server.fault = lambda row, attempt: faults.get(row)
  good = server.answer
  server.answer = lambda row: f"{KEY} {good(row)} {KEY}"
  rows = numbered(20)
  report = annotate(
    lambda: rows,
    tmp_path / "out.jsonl",
    quick_teacher(key_env="MY_KEY"),
    svamp_prompt,
    AnnotationConfig(),
  )
  assert all(f"Bearer {KEY}" in head for head in server.headers)
  assert report["statuses"]["failed"] == 3
  assert report["statuses"]["answered"] + report["statuses"]["undecided"] == 17
  server.fault = lambda row, attempt: (401, echo, ())
  with pytest.raises(UserError) as error:
    _ask(quick_teacher(key_env="MY_KEY"))
  from dss_jax.annotation.html_page import write_page
  from dss_jax.annotation.report import report_on, to_text

  figures = report_on(tmp_path / "out.jsonl")
  write_page(tmp_path / "out.jsonl", tmp_path / "page.html", figures, max_rows=100)
  written = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
  assert len(written) == 3
  captured = capfd.readouterr()
  everything = [*written.values(), *captured, caplog.text, str(error.value), to_text(figures)]
  everything.append(json.dumps(report))
  assert not any(KEY in text for text in everything)
  assert "bad key [key]" in written[tmp_path / "out.jsonl"]


@pytest.mark.parametrize(
  ("url", "api", "key"),
  [
    (None, "chat", "max_completion_tokens"),
    (None, "completion", "max_tokens"),
    ("https://api.openai.com.example/v1", "chat", "max_tokens"),
  ],
)
def test_the_name_of_the_token_limit(url, api, key, monkeypatch):
  """OpenAI's newer chat models accept one name only, which other servers do not know."""
  monkeypatch.setenv("OPENAI_API_KEY", KEY)
  body = json.loads(HttpTeacher("m", url=url, api=api)._body(_request()))
  assert {name: value for name, value in body.items() if name.startswith("max_")} == {key: 7}
