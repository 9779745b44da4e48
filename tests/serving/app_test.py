"""Access, limits, queue, time-outs, cancellation and metrics of a server."""

import concurrent.futures
import contextlib
import json
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dss_jax.errors import UserError
from dss_jax.serving.access import find_token, is_loopback, read_tokens
from dss_jax.serving.exchange import MAX_BODY_BYTES
from dss_jax.serving.models import Models
from tests.serving.conftest import EchoStudent

URL = "/v1/completions"
BODY = {"model": "mine", "prompt": "one"}
TOKEN = "a-token-of-16-or-more"


def _wait_for(condition):
  end = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.005)


def test_a_token_is_needed_but_for_health(serve):
  client = serve(tokens=(TOKEN, "another-token-of-16"))
  for headers in ({}, {"authorization": "Bearer x"}, {"authorization": TOKEN}):
    response = client.post(URL, json=BODY, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["type"] == "authentication_error"
  assert client.get("/metrics").status_code == 401
  for token in (TOKEN, "another-token-of-16"):
    headers = {"authorization": f"bearer {token}"}
    assert client.post(URL, json=BODY, headers=headers).status_code == 200
  assert client.get("/healthz").text == "ok\n"
  assert client.get("/readyz").status_code == 200


def test_without_a_token_other_hosts_are_refused(serve):
  """A page of another site can make its own name point to this machine."""
  assert serve(base_url="http://localhost:80").post(URL, json=BODY).status_code == 200
  assert serve(base_url="http://[::1]:80").post(URL, json=BODY).status_code == 200
  response = serve(base_url="http://evil.example").post(URL, json=BODY)
  assert response.status_code == 403
  with_token = serve(base_url="http://evil.example", tokens=(TOKEN,))
  headers = {"authorization": f"Bearer {TOKEN}"}
  assert with_token.post(URL, json=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
  ("host", "loopback"),
  [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback(host, loopback):
  assert is_loopback(host) is loopback


def test_tokens_come_from_the_environment(monkeypatch):
  monkeypatch.delenv("T", raising=False)
  assert read_tokens("T", "127.0.0.1") == ()
  with pytest.raises(UserError, match=r"--host 0.0.0.0: .*set the environment variable T"):
    read_tokens("T", "0.0.0.0")
  monkeypatch.setenv("T", f" {TOKEN}, another-token-of-16,")
  assert read_tokens("T", "0.0.0.0") == (TOKEN, "another-token-of-16")
  for wrong in ("short", "with\u00fcmlaut-and-more-letters"):
    monkeypatch.setenv("T", wrong)
    with pytest.raises(UserError, match="--token-env T: a token needs 16") as error:
      read_tokens("T", "127.0.0.1")
    assert wrong not in str(error.value)
  assert find_token("Bearer \u00fc", (TOKEN,)) is None


@pytest.mark.parametrize(
  ("content", "kind", "status", "message"),
  [
    (b"{", "application/json", 400, "the body is not JSON"),
    (b"\xff", "application/json", 400, "the body is not JSON"),
    (b"[" * 100_000, "application/json", 400, "the body is not JSON"),
    (b'{"n": NaN}', "application/json", 400, "NaN is not a number of JSON"),
    (rb'{"prompt": "\ud800"}', "application/json", 400, "surrogates not allowed"),
    (b"[]", "application/json", 400, "must be a JSON object"),
    (b"{}", "text/plain", 415, "must be application/json, not text/plain"),
    (b"{}", None, 415, "not missing"),
    (b" " * (MAX_BODY_BYTES + 1), "application/json", 413, "more than 1,048,576 bytes"),
  ],
)
def test_wrong_bodies(content, kind, status, message, serve):
  headers = {"content-type": kind} if kind else {}
  response = serve().post(URL, content=content, headers=headers)
  assert response.status_code == status
  assert message in response.json()["error"]["message"]


def test_a_large_body_without_a_length_is_refused(serve):
  chunks = (b" " * 2**16 for _ in range(20))
  response = serve().post(URL, content=chunks, headers={"content-type": "application/json"})
  assert response.status_code == 413


@pytest.mark.parametrize(
  ("method", "path", "status"),
  [("GET", URL, 405), ("POST", "/v1/nothing", 404), ("GET", "/", 404), ("PUT", "/v1/models", 405)],
)
def test_wrong_paths(method, path, status, serve):
  response = serve().request(method, path)
  assert response.status_code == status
  assert response.json()["error"]["message"]


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_full_queue_refuses_before_the_first_byte(is_stream, serve, student):
  """Four answers are written, two wait, the next is refused."""
  client = serve(max_waiting=2)
  student.gate.clear()
  with concurrent.futures.ThreadPoolExecutor(8) as pool, contextlib.ExitStack() as stack:
    stack.callback(student.gate.set)
    posts = []
    for number in range(1, 5):
      posts.append(pool.submit(client.post, URL, json=BODY))
      _wait_for(lambda number=number: len(student.questions) == number)
    posts += [pool.submit(client.post, URL, json=BODY) for _ in range(2)]
    _wait_for(lambda: 'dss_waiting_answers{model="mine"} 2.0' in client.get("/metrics").text)
    response = client.post(URL, json={**BODY, "stream": is_stream})
  assert response.status_code == 429
  assert int(response.headers["retry-after"]) >= 1
  assert response.json()["error"]["type"] == "rate_limit_error"
  assert {post.result().status_code for post in posts} == {200}


def test_a_request_larger_than_the_queue_is_refused(serve):
  response = serve(max_waiting=2).post(URL, json={**BODY, "n": 3})
  assert response.status_code == 429


@pytest.mark.parametrize("is_stream", [False, True])
def test_time_outs(is_stream, serve, student):
  client = serve(timeout_seconds=0.2)
  student.gate.clear()
  response = client.post(URL, json={**BODY, "stream": is_stream})
  if is_stream:
    assert response.status_code == 200
    error = json.loads(response.text.removeprefix("data: "))["error"]
  else:
    assert response.status_code == 504
    error = response.json()["error"]
  assert error["message"].startswith("the answer was not complete in time")
  student.gate.set()
  # Its slot goes to others.
  _wait_for(lambda: student.cancelled == 1)
  assert client.post(URL, json=BODY).status_code == 200


def test_an_input_unlike_those_of_the_training_is_marked(serve):
  client = serve()
  assert client.post(URL, json={**BODY, "prompt": "odd one"}).headers["x-dss-drift"] == "template"
  assert "x-dss-drift" not in client.post(URL, json=BODY).headers
  metrics = client.get("/metrics").text
  assert 'dss_drift_total{model="mine",reason="template"} 1.0' in metrics


def test_metrics(serve):
  client = serve()
  client.post(URL, json={**BODY, "prompt": ["one", "two"]})
  client.post(URL, json={**BODY, "model": "x"})
  client.get("/v1/models/mine")
  metrics = client.get("/metrics").text
  for line in (
    'dss_requests_total{call="completions",status="200"} 1.0',
    'dss_requests_total{call="completions",status="404"} 1.0',
    'dss_requests_total{call="models",status="200"} 1.0',
    'dss_tokens_total{direction="input",model="mine"} 2.0',
    'dss_tokens_total{direction="output",model="mine"} 6.0',
    'dss_request_seconds_count{call="completions"} 2.0',
  ):
    assert line in metrics


def test_many_clients_get_their_own_answers(serve, student):
  client = serve(max_waiting=1000)

  def ask(number):
    body = {**BODY, "prompt": f"row {number}", "explain": number % 2 == 0}
    return client.post(URL, json=body).json()["choices"][0]["text"]

  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    texts = list(pool.map(ask, range(100)))
  for number, text in enumerate(texts):
    rationale = "" if number % 2 else f"rationale of row {number}\nAnswer: "
    assert text == f"{rationale}label of row {number}"


def test_a_replaced_student_ends_what_it_has_begun():
  async def run():
    models = Models(10)
    old, new = EchoStudent(), EchoStudent()
    old.gate.clear()
    models.put("mine", "1", old)
    ticket = models.get("mine")[0].batcher.submit([_question("one")])
    _wait_for(lambda: old.questions)
    models.put("mine", "2", new)
    assert models.get("mine")[0].version == "2"
    old.gate.set()
    texts = [part.text async for _, part in ticket]
    assert "".join(texts) == "label of one"
    models.close()

  import asyncio

  asyncio.run(run())


def _question(text):
  from dss_jax.student.questions import Question

  return Question(text, "label")


VALUES = st.recursive(
  st.none() | st.booleans() | st.integers(-5, 40) | st.floats() | st.text(max_size=8),
  lambda inner: st.lists(inner, max_size=3)
  | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "structVal", "x"]), inner,
                    max_size=3),
  max_leaves=8,
)  # fmt: skip
NAMES = st.sampled_from(
  ["model", "prompt", "messages", "max_tokens", "temperature", "n", "stop", "stream", "seed",
   "logprobs", "instances", "parameters", "inputs", "explain", "top_k", "best_of", "tools"]
)  # fmt: skip


@settings(
  deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
  path=st.sampled_from(
    [URL, "/v1/chat/completions", "/v1/projects/p/locations/l/endpoints/mine:predict",
     "/v1/projects/p/locations/l/endpoints/mine:serverStreamingPredict",
     "/v1/projects/p/locations/l/endpoints/mine:countTokens"]
  ),
  body=st.dictionaries(NAMES, VALUES, max_size=6),
)  # fmt: skip
def test_any_request_is_answered_or_refused_in_a_sentence(path, body, client):
  response = client.post(
    path, content=json.dumps({"model": "mine", **body}).encode(),
    headers={"content-type": "application/json"},
  )  # fmt: skip
  if response.status_code != 200:
    assert 400 <= response.status_code < 500
    message = response.json()["error"]["message"]
    assert re.fullmatch(r"[^\n]{1,600}", message)


@pytest.fixture
def client(serve):
  return serve(max_waiting=10_000)
