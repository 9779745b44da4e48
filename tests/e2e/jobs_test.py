"""`dss jobs`: the old documentation's request against a server, and jobs that survive kills."""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from dss_jax.data.sources import FileRows, summarise
from dss_jax.jobs.queue.runner import LOG
from dss_jax.jobs.queue.worker_lock import holder
from dss_jax.jobs.store import ENDED
from dss_jax.student.export import best_weights
from dss_jax.student.student import Student
from tests.jobs.queue.runner_test import is_held, kill_one
from tests.jobs.workplace import PARENT, TEMPLATE, Workplace, pipeline

_COMMAND = "from dss_jax.cli.main import main; main()"
_SECONDS = 900


class Server:
  """`dss jobs serve`, and requests to it."""

  def __init__(self, workplace, port=0):
    self.root = workplace.root
    self.process = subprocess.Popen(
      [
        *(sys.executable, "-c", _COMMAND, "jobs", "serve"),
        *("--root", str(self.root), "--port", str(port)),
      ],
      stderr=subprocess.PIPE,
      text=True,
    )
    self.url = None

  def ready(self):
    for line in self.process.stderr:
      if line.startswith("ready: "):
        self.url = line.split()[-1].removesuffix("/v1")
        return self
    raise AssertionError("the server did not start")

  def call(self, method, path, body=None):
    """Sends a request as curl does; returns the answer."""
    request = urllib.request.Request(
      f"{self.url}/v1/{path}",
      method=method,
      data=None if body is None else json.dumps(body).encode(),
      headers={"content-type": "application/json; charset=utf-8"},
    )
    try:
      with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())
    except urllib.error.HTTPError as error:
      raise AssertionError(error.read().decode()) from None

  def wait(self, name):
    """Returns a job once it has ended."""
    deadline = time.monotonic() + _SECONDS
    while True:
      job = self.call("GET", name)
      if job["state"].removeprefix("PIPELINE_STATE_") in ENDED:
        return job
      assert time.monotonic() < deadline, job
      time.sleep(0.2)

  def kill(self, number=signal.SIGKILL):
    self.process.send_signal(number)
    self.process.wait()
    self.process.stderr.close()


@pytest.fixture
def workplace(tmp_path):
  return Workplace(tmp_path)


@pytest.fixture
def serve(workplace):
  """Starts a server; kills it and its jobs after the test."""
  servers = []

  def serve(of=workplace, port=0):
    servers.append((Server(of, port), of))
    return servers[-1][0]

  yield serve
  for server, of in servers:
    server.kill()
    service = of.open()
    for job in service.store.newest():
      process = holder(service.folder(job))
      if process is not None and is_held(service, job.name):
        os.killpg(process, signal.SIGKILL)


@pytest.mark.slow
def test_the_documentations_curl_distils_svamp(workplace, serve, shared):
  """The body is the documentation's: only its placeholders and the host are filled in."""
  folder = shared / "data" / "svamp"
  published = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
  workplace.write("svamp.jsonl", [{"input_text": row["input"]} for row in published[:60]])
  held_out = published[700:712]
  rows = [{"input_text": row["input"], "output_text": row["label"]} for row in held_out]
  workplace.write("svamp_eval.jsonl", rows)
  teacher = {"name": f"recorded:{folder / 'train_palm_cot.jsonl'}", "settings": {"prompt": "svamp"}}
  workplace.open(teachers={"text-unicorn@001": teacher})
  server = serve().ready()
  body = {
    "displayName": "svamp",
    "runtimeConfig": {
      "gcsOutputDirectory": "gs://my-bucket/out",
      "parameterValues": {
        "teacher_model_reference": "text-unicorn@001",
        "student_model_reference": "text-bison@002",
        "dataset_uri": "gs://my-bucket/svamp.jsonl",
        "project": "my-project",
        "train_steps": 4,
        "learning_rate_multiplier": 1.0,
        "model_display_name": "SVAMP student",
        "accelerator_type": "TPU",
        "tuned_model_location": "europe-west4",
        "evaluation_data_uri": "gs://my-bucket/svamp_eval.jsonl",
        "evaluation_interval": 2,
      },
    },
    "templateUri": TEMPLATE,
  }
  name = server.call("POST", f"{PARENT}/pipelineJobs", body)["name"]
  job = server.wait(name)
  service = workplace.open()
  log = (service.folder(service.get(name)) / LOG).read_text()
  assert job["state"] == "PIPELINE_STATE_SUCCEEDED", log
  tasks = {task["taskName"]: task for task in job["jobDetail"]["taskDetails"]}
  assert {task["state"] for task in tasks.values()} == {"SUCCEEDED"}
  assert tasks["annotate"]["execution"]["metadata"]["figures"]["with_rationale"] > 50
  model = tasks["upload-model"]["execution"]["metadata"]["output:model_resource_name"]
  assert model == f"{PARENT}/models/svamp-student@1"
  version = service.registry("my-project").version("svamp-student@1")
  assert version.record["lineage"]["teacher"].startswith("recorded:")
  # It is deployed, and answers.
  found = server.call("GET", model)
  assert found["displayName"] == "SVAMP student"
  endpoint = found["deployedModels"][0]["endpoint"]
  answer = server.call("POST", f"{endpoint}:predict", {"instances": [{"prompt": "Add 1 and 2."}]})
  assert "content" in answer["predictions"][0]
  output = workplace.bucket / "out" / name.rpartition("/")[2]
  assert {path.name for path in output.iterdir()} == {
    "annotated.jsonl", "evaluation.json", "metrics.jsonl", "model.json",
  }  # fmt: skip
  lines = (output / "annotated.jsonl").read_text().splitlines()
  assert sum(bool(json.loads(line).get("rationale")) for line in lines) > 50
  # The key to nothing of this machine is in an answer.
  assert str(workplace.folder) not in json.dumps([job, found, answer])


@pytest.mark.slow
def test_a_student_is_trained_on_the_rationales_that_people_approved(workplace, serve):
  """The server is killed between the edit and the approval, and the job after it."""
  service = workplace.open()
  server = serve().ready()
  body = pipeline({"train_steps": 30, "evaluation_interval": 5, "review_rationales": True})
  name = server.call("POST", f"{PARENT}/pipelineJobs", body)["name"]
  deadline = time.monotonic() + _SECONDS
  while server.call("GET", name)["state"] != "PIPELINE_STATE_PAUSED":
    assert time.monotonic() < deadline
    time.sleep(0.2)
  tasks = server.call("GET", name)["jobDetail"]["taskDetails"]
  assert [task["state"] for task in tasks[:4]] == ["SUCCEEDED", "SUCCEEDED", "RUNNING", "PENDING"]
  rows = server.call("GET", f"{name}:listRationales?orderBy=row")["rationales"]
  edit = {"row": 1, "etag": "0", "rationale": "A person knows better."}
  server.call("POST", f"{name}:editRationale", edit)
  server.call("POST", f"{name}:editRationale", {"row": 2, "etag": "0", "leftOut": True})
  server.kill()
  server = serve().ready()
  edited = server.call("GET", f"{name}:listRationales?filter=edited=true")["rationales"]
  assert [row["rationale"] for row in edited] == [edit["rationale"]]
  assert server.call("POST", f"{name}:approve", {})["state"] == "PIPELINE_STATE_QUEUED"
  folder = service.folder(service.get(name)) / "model"
  while not list(folder.glob("checkpoints/[0-9]*")):
    assert time.monotonic() < deadline
    time.sleep(0.1)
  os.kill(holder(folder.parent), signal.SIGKILL)
  job = server.wait(name)
  assert job["state"] == "PIPELINE_STATE_SUCCEEDED", job
  figures = {"rows": 40, "edited": 1, "left_out": 1}
  assert job["jobDetail"]["taskDetails"][2]["execution"]["metadata"] == {"review": figures}
  version = service.registry("my-project").version("distilled-student-model")
  assert version.record["lineage"]["review"] == figures
  card = json.loads((folder / "model.json").read_text())
  assert card["data"]["report"]["train"]["rows"] == 39
  reviewed = summarise(FileRows(folder / "annotated.reviewed.jsonl"))
  assert card["data"]["report"]["train_source"]["rows"] == reviewed.rows == 39
  output = workplace.bucket / "out" / name.rpartition("/")[2]
  teachers, trained_on = (
    [json.loads(line) for line in (output / each).read_text().splitlines()]
    for each in ("annotated.jsonl", "annotated.reviewed.jsonl")
  )
  assert [row["rationale"] for row in teachers] == [row["rationale"] for row in rows]
  assert trained_on[0]["rationale"] == edit["rationale"]
  assert [row["input_text"] for row in trained_on] == [
    row["input_text"] for number, row in enumerate(teachers) if number != 1
  ]
  assert (output / "annotated.edits.jsonl").read_text().count("\n") == 2


def test_a_failure_names_the_request_s_file(workplace, serve):
  workplace.write("bad.jsonl", [{"input_text": "a"}, {"input_text": 3}])
  workplace.open()
  server = serve().ready()
  name = server.call(
    "POST", f"{PARENT}/pipelineJobs", pipeline({"dataset_uri": "gs://my-bucket/bad.jsonl"})
  )["name"]
  job = server.wait(name)
  assert job["state"] == "PIPELINE_STATE_FAILED"
  assert job["error"]["code"] == 3
  assert job["error"]["message"].startswith("gs://my-bucket/bad.jsonl:2: ")
  states = [task["state"] for task in job["jobDetail"]["taskDetails"]]
  assert states == ["FAILED"] + ["NOT_TRIGGERED"] * 4


def test_a_job_goes_on_without_its_server_and_can_be_cancelled(dss, workplace, serve):
  """SIGTERM to the server leaves the job running; the commands work without a server."""
  workplace.open()
  server = serve().ready()
  request = workplace.folder / "request.json"
  request.write_text(json.dumps(pipeline({"train_steps": 100000})))
  root = ("--root", workplace.root)
  created = dss("jobs", "create", *root, "--project", "my-project", "-f", request)
  assert created.code == 0, created.err
  name = created.json["name"]
  service = workplace.open()
  metrics = service.folder(service.get(name)) / "model" / "metrics.jsonl"
  deadline = time.monotonic() + _SECONDS
  while not metrics.exists() or metrics.read_text().count("\n") < 3:
    assert time.monotonic() < deadline
    time.sleep(0.1)
  server.kill(signal.SIGTERM)
  assert server.process.returncode in (0, -signal.SIGTERM)
  size = metrics.stat().st_size
  while metrics.stat().st_size == size:
    assert time.monotonic() < deadline
    time.sleep(0.1)
  assert dss("jobs", "cancel", *root, name.rpartition("/")[2]).json["state"] == "CANCELLING"
  server = serve().ready()
  assert server.wait(name)["state"] == "PIPELINE_STATE_CANCELLED"
  while is_held(service, name):
    assert time.monotonic() < deadline
    time.sleep(0.1)
  # The checkpoint that it saved when it was told to stop.
  steps = [path.name for path in metrics.parent.glob("checkpoints/[0-9]*")]
  assert steps
  assert "is saved" in dss("jobs", "logs", *root, name).out
  assert "CANCELLED" in dss("jobs", "list", *root).out
  shown = dss("jobs", "show", *root, name).json
  assert shown["state"] == "PIPELINE_STATE_CANCELLED"


@pytest.mark.slow
@pytest.mark.parametrize("kills", [20])
@pytest.mark.timeout(3600)
def test_kills_change_no_student(workplace, serve, tmp_path, kills):
  """Four jobs on two device sets, whose server and processes are killed so often each."""
  dice = random.Random(0)
  calm = Workplace(tmp_path / "calm")
  bodies = [
    pipeline(
      {
        # So long that no job ends before its kills.
        "train_steps": 700,
        "learning_rate_multiplier": 1.0 + number,
        "evaluation_data_uri": "gs://my-bucket/eval.jsonl",
        "evaluation_interval": 5,
        "enable_early_stopping": False,
        "model_display_name": f"student {number}",
      }
    )
    for number in range(4)
  ]
  services = {place: place.open(restarts=1000) for place in (workplace, calm)}
  names = [f"{PARENT}/pipelineJobs/job-{number}" for number in range(4)]
  for service in services.values():
    for number, body in enumerate(bodies):
      service.create("pipelineJobs", "my-project", "europe-west4", body, job_id=f"job-{number}")
  undisturbed = serve(calm).ready()
  for name in names:
    assert undisturbed.wait(name)["state"] == "PIPELINE_STATE_SUCCEEDED"
  service = services[workplace]
  server = serve().ready()
  servers, jobs = 0, collections.Counter()
  while servers < kills or jobs.total() < kills:
    waiting = service.store.in_states(("QUEUED",))
    started = service.store.in_states(("PENDING", "RUNNING"))
    assert waiting or started, (servers, jobs)
    time.sleep(dice.uniform(0.5, 6))
    if servers < kills and dice.random() < 0.5:
      server.kill()
      server = serve()
      servers += 1
    elif jobs.total() < kills:
      # So that each of them is killed, and not the first ones alone.
      left = [job for job in started if not waiting or jobs[job.job_id] < kills / len(names)]
      if (job := kill_one(left, service, dice)) is not None:
        jobs[job.job_id] += 1
  print(f"servers killed: {servers}, jobs killed: {dict(jobs)}")
  assert min(jobs[f"job-{number}"] for number in range(len(names))) > 0
  server.kill()
  server = serve().ready()
  registry, expected = (each.registry("my-project") for each in (service, services[calm]))
  for number, name in enumerate(names):
    job = server.wait(name)
    assert job["state"] == "PIPELINE_STATE_SUCCEEDED", job
    history = job["jobDetail"]["taskDetails"][2]["pipelineTaskStatus"]
    assert [each["state"] for each in history] == ["PENDING", "RUNNING", "SUCCEEDED"]
    reference = f"student-{number}"
    assert len(registry.versions(reference)) == 1
    assert_same_student(registry.version(reference), expected.version(reference))
  assert sorted(registry.names()) == [f"student-{number}" for number in range(4)]
  assert {job.state for job in service.store.newest()} == {"SUCCEEDED"}


def assert_same_student(one, other):
  (step, arrays), (other_step, other_arrays) = (
    best_weights(Student.open(version.folder)) for version in (one, other)
  )
  assert step == other_step
  assert one.record["metrics"] == other.record["metrics"]
  assert set(arrays) == set(other_arrays)
  for name, array in arrays.items():
    np.testing.assert_array_equal(array.whole(), other_arrays[name].whole(), strict=True)
