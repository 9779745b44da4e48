"""`dss serve` as a user runs it: the documented requests, a moved alias, SIGTERM, wrong options."""

import json
import os
import pathlib
import shlex
import signal
import socket
import time
import urllib.request

import pytest

from tests.fixtures.server_process import post, served

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "serving.md"


def documented_requests():
  """The path and the body of each curl command of docs/serving.md."""
  text = DOCS.read_text(encoding="utf-8").replace("\\\n", "")
  words = [shlex.split(line) for line in text.splitlines() if line.startswith("curl ")]
  assert len(words) == 3
  return [(one[1].partition(":8000")[2], json.loads(one[one.index("-d") + 1])) for one in words]


@pytest.fixture
def named(with_student):
  """A working folder with a finished student, which is registered as mine@1."""
  outcome = with_student.train("student", "--display-name", "mine", "--registry", "registry")
  assert outcome.json["registered"] == "mine@1"
  return with_student


def test_a_students_life_behind_a_server(named):
  assert named("predict", "--mesh", "data=1", "--dataset", "eval.jsonl", "--output", "a.jsonl",
               "--model", "student").code == 0  # fmt: skip
  rows = named.read("a.jsonl")
  with served(named.folder, "--model", "mine") as (server, url):
    for path, body in documented_requests():
      status, answer = post(url + path, body)
      assert status == 200, answer
      choice = (answer.get("choices") or answer["predictions"])[0]
      assert "rationale" in choice.get("message", choice)
    # The same answers as offline.
    prompts = [row["input_text"] for row in rows]
    status, answer = post(f"{url}/v1/completions", {"model": "mine", "prompt": prompts})
    assert [choice["text"] for choice in answer["choices"]] == [row["prediction"] for row in rows]
    status, answer = post(f"{url}/v1/completions", {"model": "mime", "prompt": "x"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")

    # Another version takes over when the alias moves.
    outcome = named.train(
      "other", "--seed", "7", "--display-name", "mine", "--registry", "registry"
    )
    assert outcome.json["registered"] == "mine@2"
    endpoint = f"{url}/v1/projects/p/locations/l/endpoints/mine:predict"
    body = {"instances": [{"content": prompts[0]}]}
    assert post(endpoint, body)[1]["modelVersionId"] == "1"
    assert named("models", "alias", "mine@2", "default", "--registry", "registry").code == 0
    end = time.monotonic() + 120
    while post(endpoint, body)[1]["modelVersionId"] != "2":
      assert time.monotonic() < end
      time.sleep(0.2)

    # Answers that are being written at SIGTERM are completed.
    stream = {"model": "mine", "prompt": prompts[:4], "explain": True, "stream": True}
    request = urllib.request.Request(
      f"{url}/v1/completions", json.dumps(stream).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
      first = response.readline()
      server.send_signal(signal.SIGTERM)
      rest = response.read()
    assert first.startswith(b"data: ")
    assert rest.endswith(b"data: [DONE]\n\n")
    assert server.wait(timeout=60) == -signal.SIGTERM


def test_wrong_options(named, monkeypatch):
  monkeypatch.delenv("DSS_SERVE_TOKEN", raising=False)
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = str(taken.getsockname()[1])
    for options, message in (
      (("--model", "mine", "--port", port), f"--port {port}: Address already in use; give another"),
      (("--model", "none"), "none"),
      (("--model", "mine", "--host", "0.0.0.0"), "--host 0.0.0.0: other machines could use"),
      (("--model", "mine", "--host", "no.such.host.invalid"), "--host no.such.host.invalid: "),
      (("--model", "student", "--model", "./student"), "is served as 'student', too"),
    ):
      outcome = named("serve", "--registry", "registry", "--mesh", "data=1", *options)
      assert outcome.code == 2
      assert message in outcome.err
      assert len(outcome.err.strip().splitlines()) == 1, outcome.err
  assert os.listdir(named.folder / "registry" / "mine")
