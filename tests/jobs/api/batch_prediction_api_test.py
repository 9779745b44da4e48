"""Batch predictions: lines in, lines out, and jobs that are cancelled or begun again."""

import json
import time

import pytest

from dss_jax.jobs.settings import Key
from dss_jax.jobs.students.batch_journal import BatchJournal
from dss_jax.storage.keys import write_key
from dss_jax.storage.sealed import open_sealed
from tests.jobs.api_server import PARENT

MODEL = PARENT.removeprefix("/v1/") + "/models/sign"
JOBS = "/batchPredictionJobs"


@pytest.fixture
def server(server):
  server.register("sign")
  return server


def write(server, *lines, name="rows.jsonl"):
  texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
  (server.root / "bucket" / name).write_text("".join(f"{text}\n" for text in texts))
  return f"gs://data/{name}"


def body(*uris, **changes):
  return {
    "displayName": "answers",
    "model": MODEL,
    "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": list(uris)}},
    "outputConfig": {
      "predictionsFormat": "jsonl",
      "gcsDestination": {"outputUriPrefix": "gs://data/out/"},
    },
    **changes,
  }


def wait(server, job, *states):
  deadline = time.monotonic() + 30
  states = states or ("SUCCEEDED", "FAILED", "CANCELLED")
  while job["state"].removeprefix("JOB_STATE_") not in states:
    assert time.monotonic() < deadline, job
    time.sleep(0.01)
    job = server.call("GET", "/v1/" + job["name"])
  return job


def output(server, job, name="predictions_0001.jsonl"):
  folder = job["outputInfo"]["gcsOutputDirectory"].replace("gs://data", str(server.root / "bucket"))
  with open(f"{folder}/{name}") as file:
    return [json.loads(line) for line in file]


def test_lines_are_answered(server):
  uris = [
    write(server, *({"prompt": f"row {number}"} for number in range(70))),
    write(server, {"content": "another", "extra": [1]}, "", name="more.jsonl"),
  ]
  job = server.call("POST", JOBS, body(*uris, modelParameters={"maxOutputTokens": 3.0}))
  assert job["state"] == "JOB_STATE_PENDING"
  assert job["modelVersionId"] == "1"
  job = wait(server, job)
  assert job["state"] == "JOB_STATE_SUCCEEDED"
  assert job["completionStats"] == {"successfulCount": "71", "failedCount": "0"}
  assert job["createTime"] <= job["startTime"] <= job["endTime"]
  lines = output(server, job)
  assert [line["instance"] for line in lines] == [
    *({"prompt": f"row {number}"} for number in range(70)), {"content": "another", "extra": [1]}
  ]  # fmt: skip
  assert lines[3]["predictions"][0]["content"] == "label of row"
  assert lines[3]["predictions"][0]["safetyAttributes"]["blocked"] is False
  assert lines[3]["status"] == ""
  assert job["outputInfo"]["gcsOutputDirectory"].startswith("gs://data/out/prediction-sign-")
  with pytest.raises(FileNotFoundError):
    output(server, job, "errors_0001.jsonl")


def test_lines_that_are_none_are_listed(server):
  uri = write(
    server, {"prompt": "good"}, "{", "[]", {"prompt": 7}, {"prompt": " "},
    {"prompt": "x" * 30_001}, '{"prompt": "\\ud800"}', '{"prompt": NaN}', "[" * 100_000,
    {"prompt": "x" * 2**21}, [],
  )  # fmt: skip
  job = wait(server, server.call("POST", JOBS, body(uri)))
  assert job["completionStats"] == {"successfulCount": "1", "failedCount": "10"}
  assert len(output(server, job)) == 1
  errors = [line["error"] for line in output(server, job, "errors_0001.jsonl")]
  assert {error["code"] for error in errors} == {3}
  messages = [error["message"] for error in errors]
  assert messages[0] == "line 2: is not JSON"
  assert messages[-1].startswith("line 11: has no")
  assert [message.partition(": ")[2][:10] for message in messages] == [
    "is not JSO", 'has no "pr', 'has no "pr', "the prompt", "the prompt", "is not JSO",
    "is not JSO", "is not JSO", "is not JSO", 'has no "pr',
  ]  # fmt: skip


def test_a_cancelled_job_writes_nothing(server):
  server.student.gate.clear()
  uri = write(server, *({"prompt": "x"} for _ in range(9)))
  first = wait(server, server.call("POST", JOBS, body(uri)), "RUNNING")
  second = server.call("POST", JOBS, body(uri))
  for job in (second, first):
    server.call("DELETE", "/v1/" + job["name"], status=400)
    assert server.call("POST", f"/v1/{job['name']}:cancel") == {}
    job = wait(server, job)
    assert (job["state"], job["error"]["code"]) == ("JOB_STATE_CANCELLED", 1)
    server.call("POST", f"/v1/{job['name']}:cancel", {})
    assert server.call("DELETE", "/v1/" + job["name"])["done"]
    server.call("GET", "/v1/" + job["name"], status=404)
  server.student.gate.set()
  assert wait(server, server.call("POST", JOBS, body(uri)))["state"] == "JOB_STATE_SUCCEEDED"
  assert len(list(server.root.glob("bucket/out/*/predictions_0001.jsonl"))) == 1


def test_a_job_that_a_stopped_server_left_is_begun_again(server):
  server.student.gate.clear()
  uri = write(server, {"prompt": "x"})
  job = wait(server, server.call("POST", JOBS, body(uri)), "RUNNING")
  server.start()
  job = wait(server, job)
  assert job["state"] == "JOB_STATE_SUCCEEDED"
  assert len(output(server, job)) == 1
  assert len(list(server.root.glob("bucket/out/*"))) == 1


def stopped_after(server, monkeypatch, windows, job):
  """Stops the server when so many windows are in the journal; starts the next one."""
  add = BatchJournal.add
  added = []

  def add_and_stop(journal, *window):
    add(journal, *window)
    added.append(window)
    if len(added) == windows:
      server.student.gate.clear()

  with monkeypatch.context() as patch:
    patch.setattr(BatchJournal, "add", add_and_stop)
    job = server.call("POST", JOBS, job)
    deadline = time.monotonic() + 30
    while len(added) < windows:
      assert time.monotonic() < deadline
      time.sleep(0.005)
    server.stop()
  return job


def test_a_job_goes_on_where_a_stopped_server_was(server, monkeypatch):
  lines = [{"prompt": f"row {number}"} for number in range(100)]
  uri = write(server, *lines[:40], "no json", *lines[40:])
  sent = body(uri, modelParameters={"candidateCount": 2})
  undisturbed = wait(server, server.call("POST", JOBS, sent))
  job = stopped_after(server, monkeypatch, 2, sent)
  (journal,) = (server.root / "batches").iterdir()
  # As a kill leaves it.
  journal.write_bytes(journal.read_bytes() + b'["a", ["half')
  assert not list(server.root.glob("bucket/out/*/*.part"))
  server.start()
  job = wait(server, job)
  assert job["state"] == "JOB_STATE_SUCCEEDED"
  assert job["completionStats"] == {"successfulCount": "100", "failedCount": "1"}
  for name in ("predictions_0001.jsonl", "errors_0001.jsonl"):
    assert output(server, job, name) == output(server, undisturbed, name)
  assert [each.text for each in server.student.questions] == [f"row {n}" for n in range(63, 100)]
  assert list((server.root / "batches").iterdir()) == []


def test_a_job_whose_rows_changed_begins_again(server, monkeypatch):
  uri = write(server, *({"prompt": f"row {number}"} for number in range(70)))
  job = stopped_after(server, monkeypatch, 1, body(uri))
  write(server, *({"prompt": f"other {number}"} for number in range(40)))
  server.start()
  job = wait(server, job)
  assert [line["instance"]["prompt"] for line in output(server, job)] == [
    f"other {number}" for number in range(40)
  ]


def test_what_jobs_leave_is_removed(server, monkeypatch):
  uri = write(server, *({"prompt": f"row {number}"} for number in range(70)))
  job = stopped_after(server, monkeypatch, 1, body(uri))
  (server.root / "batches" / "7.jsonl").write_text("of a job that is not there\n")
  server.start()
  server.student.gate.clear()
  server.call("POST", f"/v1/{job['name']}:cancel", {})
  wait(server, job, "CANCELLED")
  server.student.gate.set()
  wait(server, server.call("POST", JOBS, body(uri)))
  assert list((server.root / "batches").iterdir()) == []


def test_a_key_encrypts_what_is_written(server, monkeypatch, tmp_path):
  key = tmp_path / "key"
  write_key(key)
  name = "projects/sums/locations/us-central1/keyRings/r/cryptoKeys/k"
  server.settings = server.settings.model_copy(update={"keys": {name: Key(file=str(key))}})
  server.start()
  uri = write(server, *({"prompt": f"row {number}"} for number in range(70)), "no json")
  sent = body(uri, encryptionSpec={"kmsKeyName": name})
  job = stopped_after(server, monkeypatch, 1, sent)
  (journal,) = (server.root / "batches").iterdir()
  assert b"row" not in journal.read_bytes()
  server.start()
  job = wait(server, job)
  assert job["encryptionSpec"] == {"kmsKeyName": name}
  assert "wrappedKey" not in job
  (folder,) = (server.root / "bucket" / "out").iterdir()
  files = {path.name: path for path in folder.iterdir()}
  assert files.keys() == {"predictions_0001.jsonl.sealed", "errors_0001.jsonl.sealed"}
  unlock = server.service.private.keyring.unlock_for("sums")
  with open_sealed(files["predictions_0001.jsonl.sealed"], unlock) as opened:
    assert [json.loads(line)["instance"]["prompt"] for line in opened] == [
      f"row {number}" for number in range(70)
    ]
  assert b"row" not in files["predictions_0001.jsonl.sealed"].read_bytes()
  key.unlink()
  error = server.call("POST", JOBS, sent, status=400)["error"]
  assert error["status"] == "FAILED_PRECONDITION"
  other = {"encryptionSpec": {"kmsKeyName": name + "2"}}
  error = server.call("POST", JOBS, body(uri, **other), status=403)["error"]
  assert "is not configured" in error["message"]


def test_a_student_that_made_room_is_loaded_again(server):
  """Between two windows of lines, other students are asked."""
  uri = write(server, *({"prompt": f"row {number}"} for number in range(60)))
  for number in range(4):
    server.register(f"other-{number}")
  server.student.gate.clear()
  job = wait(server, server.call("POST", JOBS, body(uri)), "RUNNING")
  for number in range(4):
    path = f"/v1/{server.call('POST', '/endpoints', {})['response']['name']}"
    sent = {"deployedModel": {"model": MODEL.replace("sign", f"other-{number}")}}
    server.wait(server.call("POST", f"{path}:deployModel", sent))
  server.student.gate.set()
  job = wait(server, job)
  assert job["completionStats"]["successfulCount"] == "60"
  assert server.loaded == ["sign@1", *(f"other-{number}@1" for number in range(4)), "sign@1"]


def test_an_alias_that_moves_changes_no_job(server):
  server.register("sign")
  server.student.gate.clear()
  uri = write(server, {"prompt": "x"})
  jobs = [server.call("POST", JOBS, body(uri)) for _ in range(2)]
  server.call("POST", "/models/sign@2:mergeVersionAliases", {"versionAliases": ["default"]})
  server.student.gate.set()
  assert [wait(server, job)["modelVersionId"] for job in jobs] == ["1", "1"]
  assert server.loaded == ["sign@1"]


def test_a_job_that_fails(server):
  uri = write(server, {"prompt": "break"})
  job = wait(server, server.call("POST", JOBS, body(uri)))
  assert job["state"] == "JOB_STATE_FAILED"
  assert job["error"] == {
    "code": 13, "message": "the student failed to write the answer; the server's log says why"
  }  # fmt: skip
  job = wait(server, server.call("POST", JOBS, body("gs://data/none.jsonl")))
  assert job["state"] == "JOB_STATE_FAILED"
  assert job["error"]["code"] == 3
  assert str(server.root) not in job["error"]["message"]


def test_list(server):
  uri = write(server, {"prompt": "x"})
  for name in ("a", "b"):
    wait(server, server.call("POST", JOBS, body(uri, displayName=name, labels={"team": name})))
  found = server.call("GET", JOBS, filter="state=JOB_STATE_SUCCEEDED")["batchPredictionJobs"]
  assert [job["displayName"] for job in found] == ["b", "a"]
  found = server.call("GET", JOBS, filter="labels.team=a")["batchPredictionJobs"]
  assert [job["displayName"] for job in found] == ["a"]


@pytest.mark.parametrize(
  ("changes", "status", "message"),
  [
    ({"model": MODEL + "@9"}, 404, "models/sign@9: does not exist here"),
    ({"model": MODEL.replace("sums", "other")}, 403, "is of another project"),
    ({"model": "publishers/google/models/text-bison@002"}, 400, "no student answers for this"),
    ({"model": "sign"}, 400, "model: must be a name like"),
    ({"modelParameters": {"topP": 7}}, 400, "topP: input should be less than or equal to 1"),
    ({"modelParameters": []}, 400, "modelParameters: input should be a valid dictionary"),
    ({"inputConfig": {}}, 400, "inputConfig.gcsSource: field required"),
    ({"inputConfig": {"gcsSource": {"uris": []}}}, 400, "inputConfig.gcsSource.uris: list"),
    ({"inputConfig": {"gcsSource": {"uris": ["/etc/passwd"]}}}, 403, "is outside the folders"),
    ({"inputConfig": {"gcsSource": {"uris": ["gs://data/../x"]}}}, 400, "a part of the path"),
    ({"inputConfig": {"instancesFormat": "csv", "gcsSource": {"uris": ["gs://data/x"]}}}, 400,
     "inputConfig.instancesFormat: input should be 'jsonl'"),
    ({"outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://none/x"}}}, 403,
     "the bucket 'none' is not configured"),
    ({"outputConfig": {"gcsDestination": {"outputUriPrefix": "file:///x"}}}, 400, "file://"),
  ],
)  # fmt: skip
def test_what_is_refused(changes, status, message, server):
  error = server.call("POST", JOBS, body("gs://data/rows.jsonl", **changes), status=status)["error"]
  assert message in error["message"]
