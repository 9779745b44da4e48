"""Google's own clients against a job server that trains: `make test-clients`.

DSS_CLIENTS_PYTHON is the Python of an environment with google-cloud-aiplatform and google-genai,
whose requirements differ from ours.
"""

import http.server
import json
import os
import pathlib
import random
import subprocess
import sys
import threading

import pytest

PYTHON = os.environ.get("DSS_CLIENTS_PYTHON")
SETTINGS = """
buckets: {data: bucket}
teachers:
  text-unicorn@001: {name: "recorded:recorded.jsonl"}
students:
  text-bison@002:
    student: tiny
    settings:
      DataConfig.vocabulary: bytes
      DataConfig.feature_lengths: {inputs: 32, targets: 32}
accelerators:
  TPU: {mesh: cpu, batch_size: 8}
  GPU: {mesh: cpu, batch_size: 8}
"""

pytestmark = [
  pytest.mark.clients,
  pytest.mark.skipif(not PYTHON, reason="no clients are set: run make test-clients"),
]


class Forbidden(http.server.BaseHTTPRequestHandler):
  """The buckets' own service: the SDK asks it whether its staging bucket is there, and goes on."""

  def do_GET(self):
    self.send_response(403)
    self.send_header("content-length", "0")
    self.end_headers()

  do_POST = do_GET

  def log_message(self, *arguments):
    pass


@pytest.fixture
def storage():
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Forbidden)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  yield f"http://127.0.0.1:{server.server_address[1]}"
  server.shutdown()
  thread.join()


def write_lines(path, lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def rows(count):
  for _ in range(count):
    one, other = random.randrange(10), random.randrange(10)
    text = f"{one} plus {other} is {one + other}."
    yield {
      "input_text": f"Add {one} and {other}.",
      "output_text": str(one + other),
      "rationale": text,
    }


@pytest.fixture
def root(tmp_path):
  """The server's folder: settings, rows, and a trained student to upload."""
  random.seed(7)
  bucket = tmp_path / "bucket"
  bucket.mkdir()
  train = list(rows(24))
  write_lines(bucket / "train.jsonl", train)
  write_lines(bucket / "eval.jsonl", rows(10))
  write_lines(
    bucket / "prompts.jsonl", [{"prompt": each["input_text"]} for each in train[:5]] + [7]
  )
  answers = [f"{each['rationale']} So the answer is {each['output_text']}." for each in train]
  write_lines(
    tmp_path / "recorded.jsonl",
    [{"index": index, "llm_output": answer} for index, answer in enumerate(answers)],
  )
  (tmp_path / "jobs.yaml").write_text(
    SETTINGS.replace("recorded.jsonl", str(tmp_path / "recorded.jsonl"))
  )
  run_dss(
    "distill", "--student", "tiny", "--vocabulary", "bytes", "--dataset", bucket / "train.jsonl",
    "--train-steps", "1", "--max-input-tokens", "32", "--max-output-tokens", "32",
    "--model-dir", bucket / "student",
  )  # fmt: skip
  return tmp_path


def run_dss(*arguments):
  command = [sys.executable, "-m", "dss_jax.cli.main", *map(str, arguments)]
  subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.fixture
def address(root):
  command = [
    sys.executable,
    "-m",
    "dss_jax.cli.main",
    "jobs",
    "serve",
    "--root",
    root,
    "--port",
    "0",
  ]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  for line in process.stdout:
    if " at http" in line:
      break
  else:
    raise AssertionError("the server ended")
  # Read on, or the server would wait for room in the pipe.
  rest = threading.Thread(target=process.stdout.read)
  rest.start()
  yield line.split(" at ")[1].strip().removesuffix("/v1")
  process.terminate()
  process.wait()
  rest.join()


@pytest.mark.timeout(1800)
def test_clients(address, storage, root):
  script = pathlib.Path(__file__).with_name("client_calls.py")
  command = [PYTHON, "-W", "ignore", str(script), address, "Add 1 and 2."]
  environment = {**os.environ, "STORAGE_EMULATOR_HOST": storage}
  environment.pop("PYTHONPATH", None)
  result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
  assert result.returncode == 0, result.stderr
  model = "projects/sums/locations/us-central1/models/my-sums"
  found = json.loads(result.stdout.splitlines()[-1])
  assert found == {
    "distill_from": "PIPELINE_STATE_SUCCEEDED",
    "model": f"{model}@1",
    "list_tuned_model_names": [model],
    "predict": "str",
    "predict_streaming": True,
    "count_tokens": 12,
    "get_tuned_model": True,
    "batch_predict": "JOB_STATE_SUCCEEDED",
    "batch_list": 1,
    "list_pipeline_jobs": ["PIPELINE_STATE_SUCCEEDED"],
    "tasks": {
      "validate": "SUCCEEDED", "annotate": "SUCCEEDED", "tune": "SUCCEEDED",
      "evaluate": "SUCCEEDED", "upload-model": "SUCCEEDED",
    },
    "create_pipeline_job": "projects/sums/locations/us-central1/pipelineJobs/raw-1",
    "create twice": "Conflict",
    "cancel_pipeline_job": "CANCELLED",
    "filter": ["raw"],
    "delete_pipeline_job": "NotFound",
    "wrong pipeline": "BadRequest",
    "get_model": ["My sums", "text-bison-002", "1"],
    "update_model": "of sums",
    "merge_version_aliases": ["default", "stable"],
    "list_model_versions": ["1"],
    "upload_model": ["uploaded", "1"],
    "list_models": ["My sums", "uploaded"],
    "delete used": "BadRequest",
    "supported_export_formats": ["custom-trained", "hf", "t5x", "t5x-orbax"],
    "export_model": "hf",
    "copy_model": ["copied", "1"],
    "create_endpoint": "hotline",
    "deploy_model": "1",
    "predict over REST": [1, True],
    "predict in the chat form": ["bot"],
    "count_tokens in v1beta1": 12,
    "update_endpoint": "line",
    "list_endpoints": [True],
    "delete deployed": "BadRequest",
    "get deleted": "NotFound",
    "delete_model": "NotFound",
    "Endpoint.predict": 1,
    "tune": "SUCCEEDED",
    "tuned_model": "projects/sums/locations/us-central1/models/genai-sums@1",
    "tunings.list": [True],
    "tunings.cancel": "CANCELLED",
    "generate_content": "str",
  }  # fmt: skip
  (answers,) = (root / "bucket" / "answers").glob("prediction-my-sums-*")
  lines = read_lines(answers / "predictions_0001.jsonl")
  assert [line["instance"]["prompt"][:4] for line in lines] == ["Add "] * 5
  assert all(line["predictions"][0]["content"] is not None for line in lines)
  (error,) = read_lines(answers / "errors_0001.jsonl")
  assert error["error"]["message"].startswith("line 6: has no")
