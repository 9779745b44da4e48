"""pipelineJobs over HTTP: what clients send and get, and about a hundred wrong requests."""

import json

import pytest

from dss_jax.jobs.api.job_stream import log_lines
from dss_jax.jobs.store import STARTED
from tests.jobs.workplace import PARENT, TEMPLATE, pipeline

URL = f"/v1/{PARENT}/pipelineJobs"


def end(service, name, state="SUCCEEDED"):
  service.store.change(name, ("QUEUED", *STARTED), state=state)


def error_of(response, *, status=None):
  """The message of an error, which has Google's form, one line and no traceback."""
  assert 400 <= response.status_code < 500 or response.status_code == 501, response.text
  content = response.json()["error"]
  assert content["code"] == response.status_code
  assert content["message"]
  assert "\n" not in content["message"]
  assert "Traceback" not in response.text
  assert status in (None, content["status"])
  return content["message"]


def test_the_documentations_request(client):
  """Its body, with the parameters that the page shows."""
  body = {
    "displayName": "PIPELINEJOB_DISPLAYNAME",
    "runtimeConfig": {
      "gcsOutputDirectory": "gs://my-bucket/out",
      "parameterValues": {
        "teacher_model_reference": "text-unicorn@001",
        "student_model_reference": "text-bison@002",
        "dataset_uri": "gs://my-bucket/train.jsonl",
        "project": "my-project",
        "train_steps": 300,
        "learning_rate_multiplier": 1.0,
        "model_display_name": "MODEL_DISPLAYNAME",
        "accelerator_type": "TPU",
        "tuned_model_location": "europe-west4",
      },
    },
    "templateUri": TEMPLATE,
  }
  response = client.post(URL, json=body)
  assert response.status_code == 200, response.text
  job = response.json()
  assert job["state"] == "PIPELINE_STATE_QUEUED"
  assert job["name"].startswith(f"{PARENT}/pipelineJobs/distillation-")
  assert job["runtimeConfig"] == body["runtimeConfig"]
  assert (job["displayName"], job["templateUri"]) == (body["displayName"], TEMPLATE)
  assert "startTime" not in job
  assert "error" not in job
  tasks = job["jobDetail"]["taskDetails"]
  assert [task["taskName"] for task in tasks][-1] == "upload-model"
  assert [task["taskId"] for task in tasks] == ["1", "2", "3", "4", "5"]
  assert client.get(f"/v1/{job['name']}").json() == job
  assert client.get(f"/v1beta1/{job['name']}").json() == job


def test_an_id_is_taken_once(client, service):
  assert client.post(f"{URL}?pipelineJobId=one&$alt=json", json=pipeline()).status_code == 200
  # Without tokens, whoever sends a request is of this machine.
  assert service.get(f"{PARENT}/pipelineJobs/one").user == "local"
  response = client.post(f"{URL}?pipelineJobId=one", json=pipeline())
  assert response.status_code == 409
  assert "exists already" in error_of(response, status="ALREADY_EXISTS")


def test_protobufs_names_and_the_whole_spec(client):
  """As the client library sends it: the compiled pipeline, and numbers as floats."""
  body = pipeline({"train_steps": 20.0}, pipelineSpec={"pipelineInfo": {"name": "distillation"}})
  del body["templateUri"]
  assert client.post(URL, json=body).json()["pipelineSpec"] == body["pipelineSpec"]
  body = {
    "display_name": "x",
    "runtime_config": {
      "gcs_output_directory": "gs://my-bucket/out",
      "parameters": {
        "project": {"stringValue": "my-project"},
        "dataset_uri": {"stringValue": "gs://my-bucket/train.jsonl"},
        "accelerator_type": {"stringValue": "TPU"},
        "train_steps": {"intValue": "20"},
      },
    },
    "template_uri": TEMPLATE,
  }
  response = client.post(URL, json=body)
  assert response.status_code == 200, response.text
  assert response.json()["runtimeConfig"]["parameters"]["train_steps"] == {"intValue": "20"}


def test_lists_have_no_details(client, service):
  for number in range(3):
    client.post(f"{URL}?pipelineJobId=job-{number}", json=pipeline(labels={"team": str(number)}))
  end(service, f"{PARENT}/pipelineJobs/job-1", "FAILED")
  content = client.get(URL, params={"pageSize": 2}).json()
  names = [job["name"].rpartition("/")[2] for job in content["pipelineJobs"]]
  assert names == ["job-2", "job-1"]
  assert "jobDetail" not in content["pipelineJobs"][0]
  rest = client.get(URL, params={"pageSize": 2, "pageToken": content["nextPageToken"]}).json()
  assert [job["name"].rpartition("/")[2] for job in rest["pipelineJobs"]] == ["job-0"]
  assert "nextPageToken" not in rest

  def found(**query):
    response = client.get(URL, params=query)
    assert response.status_code == 200, response.text
    return [job["name"].rpartition("/")[2] for job in response.json().get("pipelineJobs", [])]

  assert found(filter='state="PIPELINE_STATE_FAILED"') == ["job-1"]
  assert found(filter='labels.team="2" OR labels.team="0"', orderBy="create_time") == [
    "job-0", "job-2",
  ]  # fmt: skip
  assert found(filter='display_name:"my*" AND create_time>"2020-01-01T00:00:00Z"') == [
    "job-2", "job-1", "job-0",
  ]  # fmt: skip
  assert len(found(filter="pipeline_job_user_id=local")) == 3
  assert found(filter="pipeline_job_user_id=other") == []
  content = client.get(URL, params={"readMask": "name,state"}).json()
  assert set(content["pipelineJobs"][0]) == {"name", "state"}
  assert client.get(f"/v1/{PARENT.replace('my-', 'other-')}/pipelineJobs").json() == {}


def test_cancel_and_delete(client, service):
  name = client.post(URL, json=pipeline()).json()["name"]
  assert error_of(client.delete(f"/v1/{name}"), status="FAILED_PRECONDITION")
  assert client.post(f"/v1/{name}:cancel", json={}).json() == {}
  job = client.get(f"/v1/{name}").json()
  assert job["state"] == "PIPELINE_STATE_CANCELLED"
  assert job["error"]["code"] == 1
  assert client.post(f"/v1/{name}:cancel").json() == {}
  operation = client.delete(f"/v1/{name}").json()
  assert operation["done"]
  assert operation["response"]["@type"] == "type.googleapis.com/google.protobuf.Empty"
  assert client.get(f"/ui/{operation['name']}").json()["done"]
  assert error_of(client.get(f"/v1/{name}"), status="NOT_FOUND")


def test_batches(client, service):
  names = [client.post(URL, json=pipeline()).json()["name"] for _ in range(3)]
  end(service, names[0])
  operation = client.post(f"{URL}:batchCancel", json={"names": names[:2]}).json()
  states = [job["state"] for job in operation["response"]["pipelineJobs"]]
  assert states == ["PIPELINE_STATE_SUCCEEDED", "PIPELINE_STATE_CANCELLED"]
  response = client.post(f"{URL}:batchDelete", json={"names": names})
  assert "cancel it before" in error_of(response, status="FAILED_PRECONDITION")
  assert len(service.store.newest()) == 3
  operation = client.post(f"{URL}:batchDelete", json={"names": names[:2]}).json()
  assert operation["done"]
  assert [job.name for job in service.store.newest()] == [names[2]]


def test_a_jobs_states_log_and_metrics_as_they_come(client, service):
  name = client.post(URL, json=pipeline()).json()["name"]
  job = service.get(name)
  folder = service.folder(job)
  (folder / "model").mkdir(parents=True)
  (folder / "worker.log").write_bytes(
    f"in {service.root}/registry\nzweite ü\x1b[31m\rthird\nunfinish".encode()
  )
  (folder / "model" / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
  end(service, name)
  with client.stream("GET", f"/v1/{name}:watch") as response:
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [event.split("\n") for event in "".join(response.iter_text()).split("\n\n") if event]
  kinds = [event[1].removeprefix("event: ") for event in events]
  assert kinds == ["log", "log", "metrics", "metrics", "state"]
  assert events[0][2:] == ["data: in ROOT/registry"]
  assert events[1][2:] == ["data: zweite ü\\x1b[31m\\rthird"]
  assert json.loads(events[-1][2].removeprefix("data: "))["state"] == "SUCCEEDED"
  # A client that connects again gets what it has not seen.
  headers = {"last-event-id": events[2][0].removeprefix("id: ")}
  with client.stream("GET", f"/v1/{name}:watch", headers=headers) as response:
    again = "".join(response.iter_text())
  assert again.count("event: metrics") == 1
  assert 'data: {"step": 2}' in again
  assert "event: log" not in again
  assert list(log_lines(service, job, follow=True)) == [
    f"in {service.root}/registry",
    "zweite ü\\x1b[31m\\rthird",
  ]


WRONG_FIELDS = [
  {"displayName": "x" * 129},
  {"displayName": 7},
  {"displayName": None},
  {"labels": {"A": "b"}},
  {"labels": {"a": "b" * 64}},
  {"labels": {"a": 1}},
  {"labels": ["a"]},
  {"labels": {str(number): "x" for number in range(65)}},
  {"labels": {"<script>": "x"}},
  {"templateUri": ""},
  {"templateUri": "https://us-kfp.pkg.dev/ml-pipeline/large-language-model-pipelines/rlhf/v1"},
  {"templateUri": 1},
  {"templateUri": "x" * 2000},
  {"pipelineSpec": "spec", "templateUri": ""},
  {"pipelineSpec": {"pipelineInfo": []}, "templateUri": ""},
  {"pipelineSpec": {"pipelineInfo": {"name": 3}}, "templateUri": ""},
  {"serviceAccount": "root"},
  {"serviceAccount": {"a": 1}},
  {"encryptionSpec": {"kmsKeyName": "k"}},
  {"encryptionSpec": {"key": "k"}},
  {"encryptionSpec": []},
  {"runtimeConfig": {"gcsOutputDirectory": ""}},
  {"runtimeConfig": {"gcsOutputDirectory": "gs://my-bucket/../secret"}},
  {"runtimeConfig": {"gcsOutputDirectory": "/tmp"}},
  {"runtimeConfig": {"gcsOutputDirectory": ["gs://my-bucket"]}},
  {"runtimeConfig": {"parameterValues": []}},
  {"runtimeConfig": {"parameterValues": None}},
  {"runtimeConfig": {"parameters": {"x": {"intValue": 1}}}},
  {"runtimeConfig": {"parameterValues": {}, "parameters": {"x": {"intValue": "a"}}}},
  {"runtimeConfig": {"unknown": 1}},
  {"unknown": 1},
  {"__class__": {}},
]
WRONG_PARAMETERS = [
  {"project": None},
  {"project": "other-project"},
  {"project": "my-project/../other-project"},
  {"dataset_uri": None},
  {"dataset_uri": "gs://my-bucket"},
  {"dataset_uri": "gs://my-bucket/none.jsonl"},
  {"dataset_uri": "gs://my-bucket/../secret/train.jsonl"},
  {"dataset_uri": "gs://my-bucket/%2e%2e/secret/train.jsonl"},
  {"dataset_uri": "gs://other/train.jsonl"},
  {"dataset_uri": "file:///etc/passwd"},
  {"dataset_uri": "/etc/passwd"},
  {"dataset_uri": "-"},
  {"dataset_uri": "http://169.254.169.254/latest"},
  {"dataset_uri": ["gs://my-bucket/train.jsonl"]},
  {"dataset_uri": "gs://my-bucket/tr\0ain.jsonl"},
  {"dataset_uri": "gs://my-bucket/" + "../" * 50 + "etc/passwd"},
  {"teacher_model_reference": "recorded:/etc/passwd"},
  {"teacher_model_reference": "openai:gpt"},
  {"teacher_model_reference": "projects/other-project/locations/us-east1/models/x@1"},
  {"teacher_model_reference": "projects/my-project/locations/us-east1/models/none@1"},
  {"teacher_model_reference": ""},
  {"student_model_reference": "tiny"},
  {"student_model_reference": "../tiny"},
  {"student_model_reference": {"a": 1}},
  {"model_display_name": ""},
  {"model_display_name": 3},
  {"train_steps": "'; drop table jobs; --"},
  {"train_steps": 1e300},
  {"train_steps": -1},
  {"train_steps": {"intValue": 3}},
  {"learning_rate_multiplier": -1},
  {"learning_rate_multiplier": True},
  {"evaluation_data_uri": "gs://my-bucket/none.jsonl"},
  {"evaluation_data_uri": 1},
  {"evaluation_interval": 0},
  {"enable_early_stopping": "maybe"},
  {"enable_checkpoint_selection": 1},
  {"accelerator_type": "CPU"},
  {"accelerator_type": "GPU"},
  {"accelerator_type": ["TPU"]},
  {"tensorboard_resource_id": "<script>"},
  {"encryption_spec_key_name": "key"},
  {"location": "../x"},
  {"tuned_model_location": 3},
  {"max_context_length": "64k"},
  {"temperature": 2},
  {"evaluation_output_root_dir": "/root"},
  {"api_endpoint": 3},
  {"version": "x" * 65},
  {"tpu_training_skip_cmek": "no"},
  {"unknown": 1},
  {"x" * 10000: 1},
]


@pytest.mark.parametrize("fields", WRONG_FIELDS, ids=lambda fields: str(fields)[:50])
def test_wrong_fields(client, service, fields):
  error_of(client.post(URL, json={**pipeline(), **merged(fields)}))
  assert not service.store.newest()


def merged(fields):
  if "runtimeConfig" in fields:
    return {"runtimeConfig": {**pipeline()["runtimeConfig"], **fields["runtimeConfig"]}}
  return fields


@pytest.mark.parametrize("values", WRONG_PARAMETERS, ids=lambda values: str(values)[:50])
def test_wrong_parameters(client, service, workplace, values):
  message = error_of(client.post(URL, json=pipeline(values)))
  assert next(iter(values))[:20] in message or "kmsKeyName" in message
  assert str(workplace.folder) not in message
  assert not service.store.newest()


@pytest.mark.parametrize(
  ("method", "path", "body"),
  [
    ("POST", "?pipelineJobId=A", {}),
    ("POST", "?pipelineJobId=../x", {}),
    ("POST", f"?pipelineJobId={'x' * 128}", {}),
    ("POST", "?pipelineJobId=-a", {}),
    ("POST", "", []),
    ("POST", "", 3),
    ("POST", "", None),
    ("GET", "/none", None),
    ("GET", f"/{'x' * 5000}", None),
    ("GET", "/..%2f..%2fx", None),
    ("GET", "/'; drop table jobs; --", None),
    ("DELETE", "/none", None),
    ("POST", "/none:cancel", {}),
    ("GET", "/none:watch", None),
    ("POST", "/none:explode", {}),
    ("PUT", "/none", {}),
    ("GET", "?filter=state", None),
    ("GET", "?filter=secret=1", None),
    ("GET", "?orderBy=secret", None),
    ("GET", "?pageSize=-1", None),
    ("GET", "?pageToken=x", None),
    ("POST", ":batchDelete", {}),
    ("POST", ":batchDelete", {"names": []}),
    ("POST", ":batchDelete", {"names": "x"}),
    ("POST", ":batchDelete", {"names": [1]}),
    ("POST", ":batchDelete", {"names": [f"{PARENT}/pipelineJobs/none"]}),
    ("POST", ":batchDelete", {"names": [f"{PARENT}/pipelineJobs/none"] * 2}),
    ("POST", ":batchDelete", {"names": [f"{PARENT}/pipelineJobs/{n}" for n in range(33)]}),
    ("POST", ":batchCancel", {"names": ["projects/other-project/locations/x/pipelineJobs/a"]}),
    ("POST", ":batchCancel", {"names": [f"{PARENT}/tuningJobs/a"]}),
  ],
)
def test_wrong_calls(client, method, path, body):
  if body == {} and "pipelineJobId" in path:
    body = pipeline()
  error_of(client.request(method, URL + path, json=body))


@pytest.mark.parametrize(
  "parent",
  [
    "projects/third-project/locations/europe-west4",
    "projects/My_Project/locations/europe-west4",
    "projects/my-project/locations/EUROPE",
    "projects/my-project/locations/..",
    "projects/%2e%2e/locations/europe-west4",
  ],
)
def test_wrong_parents(client, parent):
  error_of(client.post(f"/v1/{parent}/pipelineJobs", json=pipeline()))
  error_of(client.get(f"/v1/{parent}/pipelineJobs/x"))


@pytest.mark.parametrize(
  "content", [b"", b"{", b"\xff", b'{"a": NaN}', b"[" * 100000, b'"\\ud800"', b"x" * 2**21]
)
def test_bodies_that_are_no_json(client, content):
  error_of(client.post(URL, content=content, headers={"content-type": "application/json"}))


def test_text_of_a_request_is_only_text(client):
  """Scripts come back as JSON text, which no browser runs."""
  body = pipeline({"model_display_name": "<script>alert(1)</script>"})
  body["displayName"] = "<img src=x onerror=alert(1)>"
  response = client.post(URL, json=body)
  assert response.status_code == 200
  assert response.headers["content-type"] == "application/json"
  assert response.headers["x-content-type-options"] == "nosniff"
