"""Unmodified clients against a server: `make test-clients`.

DSS_CLIENTS_PYTHON is the Python of an environment with openai and google-cloud-aiplatform, whose
requirements differ from ours.
"""

import json
import os
import pathlib
import subprocess
import threading

import pytest

from dss_jax.serving.app import make_app
from dss_jax.serving.models import Models

PYTHON = os.environ.get("DSS_CLIENTS_PYTHON")

pytestmark = [
  pytest.mark.clients,
  pytest.mark.skipif(not PYTHON, reason="no clients are set: run make test-clients"),
]


@pytest.fixture
def address(student):
  import uvicorn

  models = Models(64)
  models.put("mine", "3", student)
  config = uvicorn.Config(make_app(models), port=0, log_level="error")
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run)
  thread.start()
  while not server.started:
    assert thread.is_alive()
    thread.join(0.01)
  yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
  server.should_exit = True
  thread.join()


def test_clients(address):
  script = pathlib.Path(__file__).with_name("client_calls.py")
  command = [PYTHON, "-W", "ignore", str(script), address, "mine", "a row"]
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
  label, rationale = "label of a row", "rationale of a row"
  assert json.loads(result.stdout) == {
    "models": ["mine", "mine:explain"],
    "chat": label,
    "logprobs": [2] * 4,
    "top_logprobs": [2] * 4,
    "chat_stream": label,
    "completions": [f"{rationale}\nAnswer: {label}"] * 4,
    "completion_stream": label,
    "NotFoundError": True,
    "BadRequestError": True,
    "predict": label,
    "rationale": rationale,
    "stream": label,
    "NotFound": True,
    "tokens": 2,
    "vertexai": label,
    "vertexai_stream": label,
    "vertexai_tokens": 2,
  }
