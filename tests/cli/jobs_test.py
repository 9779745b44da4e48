"""`dss jobs`, on a folder without a server."""

import json
import socket

import pytest

from dss_jax.jobs.queue.runner import LOG, locked
from dss_jax.storage.keys import new_data_key, read_key
from dss_jax.storage.sealed import sealing
from tests.e2e.conftest import Dss
from tests.jobs.workplace import PARENT, Workplace, paused, pipeline


@pytest.fixture
def workplace(tmp_path):
  workplace = Workplace(tmp_path)
  workplace.open()
  return workplace


@pytest.fixture
def jobs(workplace, tmp_path):
  """Runs `dss jobs COMMAND --root DIR`."""
  dss = Dss.__new__(Dss)
  dss.folder = tmp_path
  return lambda command, *arguments: dss(
    "jobs", command, "--root", workplace.root, *arguments
  )  # fmt: skip


@pytest.fixture
def create(jobs, tmp_path):
  def create(body, *arguments):
    path = tmp_path / "request.json"
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    parent = ("--project", "my-project", "--location", "europe-west4")
    return jobs("create", *parent, "-f", path, *arguments)

  return create


def test_a_job_from_its_creation_to_its_end(jobs, create, workplace):
  assert "there are no jobs" in jobs("list").out
  name = f"{PARENT}/pipelineJobs/one"
  assert create(pipeline(), "--job-id", "one").json == {"name": name, "state": "QUEUED"}
  assert jobs("list").out.startswith("QUEUED ")
  shown = jobs("show", "one").json
  assert shown == jobs("show", name).json
  assert (shown["name"], shown["state"]) == (name, "PIPELINE_STATE_QUEUED")
  assert jobs("cancel", "one").json["state"] == "CANCELLED"
  listed = jobs("list", "--json").json
  assert [(job["name"], job["state"]) for job in listed] == [(name, "CANCELLED")]
  assert jobs("logs", "one").out == ""
  service = workplace.open()
  folder = service.folder(service.get(name))
  folder.mkdir(parents=True)
  (folder / LOG).write_text("step 1\n\x1b[2Jstep 2\n")
  assert jobs("logs", "one", "--follow").out == "step 1\n\\x1b[2Jstep 2\n"


def test_a_review(jobs, workplace):
  job = paused(workplace.open())
  out = jobs("review", "one").out
  assert out.startswith(f"PAUSED     {job.name}\n6 rows: 1 with concerns, 0 edited, 0 left out\n")
  assert "dss annotate report" in out
  assert jobs("list").out.startswith("PAUSED ")
  figures = jobs("review", "one", "--json").json
  assert (figures["state"], figures["rows"], figures["withConcerns"]) == ("PAUSED", 6, 1)
  assert jobs("approve", "one").json == {"name": job.name, "state": "QUEUED"}
  outcome = jobs("approve", "one")
  assert (outcome.code, outcome.err.count("\n")) == (2, 1)
  assert "is QUEUED; rationales are edited" in outcome.err


def test_a_tuning_job(jobs, create):
  spec = {"trainingDatasetUri": "gs://my-bucket/labelled.jsonl"}
  created = create({"baseModel": "t5-small", "supervisedTuningSpec": spec})
  assert "/tuningJobs/" in created.json["name"]
  assert jobs("show", created.json["name"]).json["state"] == "JOB_STATE_QUEUED"


@pytest.mark.parametrize(
  ("body", "says"),
  [
    ("{", "is not JSON"),
    ("[]", "the body must be the JSON object of a TuningJob"),
    (pipeline({"train_steps": 0}), "train_steps is 0, but must be a whole number"),
    (pipeline({"accelerator_type": "GPU"}), "needs 8 devices of GPU"),
  ],
)
def test_a_wrong_request_is_one_sentence(create, body, says):
  outcome = create(body)
  assert (outcome.code, outcome.out) == (2, "")
  assert says in outcome.err
  assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("command", ["show", "cancel", "logs", "review", "approve"])
def test_a_job_that_is_not_there(jobs, command):
  outcome = jobs(command, "none")
  assert (outcome.code, outcome.err) == (
    2,
    "dss: dss jobs: none: does not exist here; list what does\n",
  )


def test_a_server_that_cannot_start(jobs, workplace):
  with locked(workplace.root):
    outcome = jobs("serve")
  assert (outcome.code, outcome.out) == (2, "")
  assert "another server runs its jobs" in outcome.err
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    outcome = jobs("serve", "--port", taken.getsockname()[1])
  assert (outcome.code, outcome.err.count("--port")) == (2, 2)
  outcome = jobs("serve", "--host", "0.0.0.0")
  assert outcome.code == 2
  assert "without a token" in outcome.err


def test_a_root_that_is_none(jobs, workplace):
  (workplace.root / "jobs.yaml").write_text("bucket: {}\n")
  assert "bucket: Extra inputs are not permitted" in jobs("list").err
  (workplace.root / "jobs.yaml").unlink()
  (workplace.root / "jobs.sqlite").write_bytes(b"no database" * 100)
  outcome = jobs("list")
  assert outcome.code == 2


def test_a_key_and_what_it_opens(jobs, tmp_path):
  dss = Dss.__new__(Dss)
  dss.folder = tmp_path
  assert dss("jobs", "key", "--out", "key").code == 0
  outcome = dss("jobs", "key", "--out", "key")
  assert (outcome.code, outcome.err.count("\n")) == (2, 1)
  key = new_data_key(read_key(tmp_path / "key", "projects/p"), "job-1", "projects/p")
  with sealing(tmp_path / "a.sealed", key, "a") as file:
    file.write(b"secret")
  assert dss("jobs", "open", "a.sealed", "--key", "key", "--output", "-").code == 0
  assert dss("jobs", "open", "a.sealed", "--key", "key", "--output", "a").code == 0
  assert (tmp_path / "a").read_bytes() == b"secret"
  outcome = jobs("open", "a.sealed", "--output", "b")
  assert "the key 'projects/p' is not configured here" in outcome.err
  (tmp_path / "none").write_text("secret")
  for given in ("none", "missing"):
    outcome = dss("jobs", "open", given, "--key", "key", "--output", "b")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
  assert not (tmp_path / "b").exists()
