"""The HTTP teacher: requests, responses, retries, and the key, which is never written."""

import asyncio
import dataclasses
import json

import pytest

from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.run import RequestConfig, annotate
from dss_jax.errors import UserError
from dss_jax.teachers.base import Billed, RequestFailed, TeacherRequest
from dss_jax.teachers.http import HttpTeacher
from tests.fixtures.teacher_server import QUICK

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
def test_statuses_that_may_pass(status, server, quick_teacher):
  server.fault = lambda row, attempt: (status, b"{}", ("retry-after: 7",))
  with pytest.raises(RequestFailed, match=f"^HTTP {status}$") as error:
    _ask(quick_teacher())
  assert (error.value.may_pass, error.value.wait_seconds, error.value.billed) == (True, 7, None)


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_refusals_of_one_row(status, server, quick_teacher):
  server.fault = lambda row, attempt: (status, b'{"error": "no\\nthanks"}', ())
  with pytest.raises(RequestFailed, match=f"^HTTP {status} no thanks$") as error:
    _ask(quick_teacher())
  assert not error.value.may_pass
  assert len(server.requests) == 1


@pytest.mark.parametrize(
  ("status", "body", "mend"),
  [
    (401, b"{}", "set OPENAI_API_KEY"),
    (404, b"{}", "no such model or path"),
    (400, b'{"error": {"message": "Model not found: served"}}', "no such model or path"),
  ],
)
def test_refusals_of_every_row(status, body, mend, server, quick_teacher):
  server.fault = lambda row, attempt: (status, body, ())
  with pytest.raises(UserError, match=mend):
    _ask(quick_teacher())


def test_a_redirect_is_not_followed(server, quick_teacher):
  server.fault = lambda row, attempt: (307, b"", (f"location: {server.url}/elsewhere",))
  with pytest.raises(RequestFailed, match="HTTP 307"):
    _ask(quick_teacher())
  assert len(server.requests) == 1


def test_no_server(server, quick_teacher):
  """Nothing is billed without a connection."""
  teacher = quick_teacher()
  server.close()
  with pytest.raises(RequestFailed, match=r"^the connection failed: ClientConnector") as error:
    _ask(teacher)
  assert (error.value.may_pass, error.value.billed) == (True, None)


@pytest.mark.parametrize(
  ("fault", "reason"),
  [
    ("hang up", r"the connection failed: ServerDisconnectedError"),
    ("reset", r"the connection failed: \w+: "),
    ("trickle", "no complete response within 0.2 seconds"),
    ((200, b"{}", ("content-type application/json",)), "the connection failed: .*header"),
    ((200, b"<html>busy</html>", ("content-type: text/html",)), "the response is not JSON"),
    ((200, b'"yes"', ()), "the response is JSON, but not a completion"),
    ((502, "oops \u2713\n".encode(), ()), "HTTP 502 oops \u2713"),
  ],
)
def test_failure_reasons(fault, reason, server, quick_teacher):
  server.fault = lambda row, attempt: fault
  with pytest.raises(RequestFailed, match=rf"^{reason}") as error:
    _ask(quick_teacher(timeout_seconds=0.2))
  assert error.value.may_pass
  # A response that did not arrive may have been billed.
  is_lost = isinstance(fault, str) or "header" in reason
  assert error.value.billed == (Billed() if is_lost else None)


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
    RequestConfig(retry_policy=QUICK),
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
  body = json.loads(HttpTeacher("m", url=url, api=api)._form.body(_request(), "m", api))
  assert {name: value for name, value in body.items() if name.startswith("max_")} == {key: 7}


SYSTEM = [{"role": "system", "content": "Say."}, {"role": "user", "content": "row 1"}]
REFUSALS = {
  "max_tokens": "Unsupported parameter: max_tokens. Use max_completion_tokens instead.",
  "stop": "Unsupported parameter: 'stop' is not supported with this model.",
  "temperature": "Unsupported value: 'temperature' does not support 0.5 with this model.",
  "system": "System role not supported",
}


def _refuse(server, names):
  """Makes the server refuse the named parts of requests, one at a time."""
  good = server.respond

  async def respond(head, body, writer):
    roles = [message["role"] for message in body.get("messages", ())]
    for name in names:
      if name in body or name in roles:
        server.bodies.append(body)
        message = json.dumps({"error": {"message": REFUSALS[name]}}).encode()
        return await server.send(writer, 400, message)
    return await good(head, body, writer)

  server.respond = respond


def test_the_form_of_requests_is_found_out_once(server, quick_teacher, capfd):
  _refuse(server, list(REFUSALS))
  teacher = quick_teacher()

  async def ask():
    await asyncio.gather(*(teacher.ask(_request(messages=SYSTEM)) for _ in range(4)))
    await teacher.ask(_request(messages=SYSTEM))
    await teacher.close()

  asyncio.run(ask())
  good = {
    "model": "served",
    "max_completion_tokens": 7,
    "messages": [{"role": "user", "content": "Say.\n\nrow 1"}],
  }
  assert server.bodies[-1] == good
  assert server.bodies.count(good) == 5
  # Each refusal is said once.
  err = capfd.readouterr().err
  assert err.count("teacher: the server says") == 4
  assert "--request-form max_completion_tokens" in err


def test_a_given_form_needs_no_refusal(server, quick_teacher):
  _refuse(server, ["max_tokens", "system"])
  _ask(
    quick_teacher(request_form=("max_completion_tokens", "no-system-role")),
    _request(messages=SYSTEM),
  )
  assert len(server.bodies) == 1


@pytest.mark.parametrize(
  "words",
  ["max_tokens is too large: 4096", "stop talking", "The temperature of the sun", "flagged"],
)
def test_other_refusals_do_not_change_the_form(words, server, quick_teacher):
  server.fault = lambda row, attempt: (400, json.dumps({"message": words}).encode(), ())
  with pytest.raises(RequestFailed, match=words):
    _ask(quick_teacher())
  assert len(server.requests) == 1


def test_a_server_that_has_answered_refuses_the_row(server, quick_teacher):
  """Not the form of the request, whatever its words are."""
  words = json.dumps({"message": REFUSALS["stop"]}).encode()
  server.fault = lambda row, attempt: (400, words, ()) if row == 2 else None
  teacher = quick_teacher()

  async def ask():
    await teacher.ask(_request(1))
    with pytest.raises(RequestFailed, match="HTTP 400 Unsupported parameter: 'stop'"):
      await teacher.ask(_request(2))
    await teacher.close()

  asyncio.run(ask())
  assert len(server.requests) == 2


def test_a_server_that_refuses_both_names_of_the_limit(server, quick_teacher):
  """The request fails with the server's words; the form does not change for ever."""
  words = json.dumps({"message": "unknown: max_tokens, max_completion_tokens"}).encode()
  server.fault = lambda row, attempt: (400, words, ())
  with pytest.raises(RequestFailed, match="HTTP 400 unknown"):
    _ask(quick_teacher())
  assert len(server.requests) == 2


def test_an_error_within_a_success_is_an_error(server, quick_teacher):
  body = json.dumps({"error": {"message": "quota is used up", "code": 429}}).encode()
  server.fault = lambda row, attempt: (200, body, ("retry-after: 3",))
  with pytest.raises(RequestFailed, match=r"^HTTP 429 quota is used up$") as error:
    _ask(quick_teacher())
  assert (error.value.may_pass, error.value.wait_seconds) == (True, 3)
