"""A paused job's rationales over HTTP: listed, edited by version, approved, refused."""

import concurrent.futures
import json
import signal
import subprocess
import sys

import pytest
from starlette.testclient import TestClient

from dss_jax.jobs.api.access import Access, Caller
from dss_jax.jobs.api.app import make_app
from tests.jobs.api.pipeline_jobs_api_test import error_of
from tests.jobs.workplace import PARENT, annotate, paused, pipeline


@pytest.fixture
def job(service):
  return paused(service)


@pytest.fixture
def url(job):
  return f"/v1/{job.name}"


@pytest.fixture
def rationales(client, url):
  """A page of the rows; the keywords are its query."""

  def rationales(**query):
    response = client.get(f"{url}:listRationales", params=query)
    assert response.status_code == 200, response.text
    return response.json()

  return rationales


@pytest.fixture
def edit(client, url):
  return lambda **body: client.post(f"{url}:editRationale", json=body)


def rows(page):
  return [row["row"] for row in page.get("rationales", [])]


def test_rows_with_concerns_come_first(rationales):
  page = rationales()
  assert rows(page) == [2, 1, 3, 4, 5, 6]
  figures = {"rows": 6, "withConcerns": 1, "edited": 0, "leftOut": 0, "editable": True}
  assert page["review"] == figures
  first = page["rationales"][0]
  assert first.pop("inputText").startswith("Add ")
  assert first.pop("rationale").endswith(first["outputText"] + ".")
  assert first.pop("outputText") == first.pop("teacherLabel")
  assert first == {
    "name": f"{PARENT}/pipelineJobs/one/rationales/2", "row": 2, "leftOut": False,
    "status": "answered", "concerns": ["unmentioned"], "agreement": 1.0, "etag": "0",
  }  # fmt: skip


def test_pages_and_filters(rationales, edit):
  found, token = [], ""
  while True:
    page = rationales(pageSize=2, pageToken=token, orderBy="row")
    found += rows(page)
    if "nextPageToken" not in page:
      break
    token = page["nextPageToken"]
  assert found == [1, 2, 3, 4, 5, 6]
  assert edit(row=3, etag="0", rationale="Quite Another One").status_code == 200
  assert edit(row=4, etag="0", leftOut=True).status_code == 200
  assert rows(rationales(filter="has_concerns=true")) == [2]
  assert rows(rationales(filter="concerns:unmen")) == [2]
  assert rows(rationales(filter="edited=true")) == [3]
  assert rows(rationales(filter="leftOut=true OR edited=true")) == [3, 4]
  assert rows(rationales(filter='text:"another QUITE"')) == [3]
  assert rows(rationales(filter="status=failed")) == []


def test_an_edit_is_kept_with_who_made_it(rationales, edit):
  row = rationales()["rationales"][0]
  response = edit(row=2, etag="0", outputText="7", rationale="It is so.")
  assert response.status_code == 200, response.text
  edited = response.json()
  assert (edited["outputText"], edited["rationale"], edited["etag"]) == ("7", "It is so.", "1")
  assert edited["annotated"] == {key: row[key] for key in ("outputText", "rationale")}
  assert [one["user"] for one in edited["edits"]] == ["local"]
  assert rationales()["rationales"][0] == edited
  removed = edit(row=2, etag="1", rationale=None).json()
  assert "rationale" not in removed
  assert removed["outputText"] == "7"


@pytest.mark.parametrize(
  ("body", "says"),
  [
    ({}, "row is required; etag is required"),
    ({"row": 0, "etag": "0"}, "row is 0"),
    ({"row": "1", "etag": "0"}, "row is '1'"),
    ({"row": 10**12, "etag": "0"}, "row is 1000000000000"),
    ({"row": 99, "etag": "0", "leftOut": True}, "row 99: there is none"),
    ({"row": 1, "etag": "x"}, "etag is 'x'"),
    ({"row": 1, "etag": "0", "rationale": " "}, '"rationale" is empty'),
    ({"row": 1, "etag": "0", "rationale": 3}, "rationale is 3"),
    ({"row": 1, "etag": "0", "outputText": None, "rationale": None}, "neither label nor"),
    ({"row": 1, "etag": "0", "leftOut": "yes"}, "leftOut is 'yes'"),
    ({"row": 1, "etag": "0", "inputText": "x"}, "there is no field inputText"),
  ],
)
def test_wrong_edits(body, says, edit, rationales):
  assert says in error_of(edit(**body), status="INVALID_ARGUMENT")
  assert rationales()["review"]["edited"] == 0


@pytest.mark.parametrize("path", [":listRationales?pageSize=x", ":listRationales?filter=x"])
def test_wrong_lists(path, client, url):
  error_of(client.get(url + path), status="INVALID_ARGUMENT")


def test_an_old_version_is_refused(edit):
  assert edit(row=1, etag="0", rationale="First.").status_code == 200
  response = edit(row=1, etag="0", rationale="Second.")
  assert response.status_code == 409
  assert "was edited since you read it, last by local at" in error_of(response, status="ABORTED")


def test_two_editors_at_once_lose_no_edit(edit, rationales):
  def write(number):
    """Adds a word to what the row says, as often as somebody else was faster."""
    while True:
      row = next(one for one in rationales()["rationales"] if one["row"] == 1)
      response = edit(row=1, etag=row["etag"], rationale=f"{row['rationale']} w{number}")
      if response.status_code == 200:
        return
      assert response.status_code == 409, response.text

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(write, range(12)))
  row = next(one for one in rationales()["rationales"] if one["row"] == 1)
  assert {f"w{number}" for number in range(12)} <= set(row["rationale"].split())
  assert row["etag"] == "12"


def test_approval_puts_the_job_back_into_the_queue(client, service, url, edit, job):
  edit(row=1, etag="0", rationale="Mine.")
  edit(row=2, etag="0", leftOut=True)
  response = client.post(f"{url}:approve", json={})
  assert response.status_code == 200, response.text
  assert response.json()["state"] == "PIPELINE_STATE_QUEUED"
  reviewed = service.folder(job) / "model" / "annotated.reviewed.jsonl"
  first = json.loads(reviewed.read_text().splitlines()[0])
  assert first["rationale"] == "Mine."
  for refused in (client.post(f"{url}:approve", json={}), edit(row=1, etag="1", rationale="Late.")):
    assert "is QUEUED; rationales are edited" in error_of(refused, status="FAILED_PRECONDITION")


def test_a_review_without_rows_left(client, edit, url, service, job):
  for row in range(1, 7):
    assert edit(row=row, etag="0", leftOut=True).status_code == 200
  response = client.post(f"{url}:approve", json={})
  assert "leaves no label" in error_of(response, status="FAILED_PRECONDITION")
  assert service.get(job.name).state == "PAUSED"


def test_jobs_without_rows_or_review(client, service):
  job = service.create("pipelineJobs", "my-project", "europe-west4", pipeline(), job_id="plain")
  url = f"/v1/{job.name}"
  response = client.get(f"{url}:listRationales")
  assert "has no rationales" in error_of(response, status="FAILED_PRECONDITION")
  annotate(service, job)
  page = client.get(f"{url}:listRationales").json()
  assert (len(page["rationales"]), page["review"]["editable"]) == (6, False)
  response = client.post(f"{url}:editRationale", json={"row": 1, "etag": "0", "leftOut": True})
  error_of(response, status="FAILED_PRECONDITION")
  assert client.get(f"/v1/{PARENT}/pipelineJobs/none:listRationales").status_code == 404


def test_an_encrypted_job_says_so(client, service, job):
  with service.store._writing() as database:
    plan = json.dumps({**job.plan, "key": {"name": "k", "wrapped": "w"}})
    database.execute("update jobs set plan = ? where name = ?", (plan, job.name))
  response = client.get(f"/v1/{job.name}:listRationales")
  assert "its rationales are encrypted" in error_of(response, status="FAILED_PRECONDITION")


def test_only_a_job_with_a_review_has_the_task(client, service, job):
  def tasks(name):
    found = client.get(f"/v1/{name}").json()["jobDetail"]["taskDetails"]
    return [task["taskName"] for task in found]

  plain = service.create("pipelineJobs", "my-project", "europe-west4", pipeline(), job_id="plain")
  assert tasks(plain.name) == ["validate", "annotate", "tune", "evaluate", "upload-model"]
  assert tasks(job.name)[2] == "review"
  assert client.get(f"/v1/{job.name}").json()["state"] == "PIPELINE_STATE_PAUSED"


def test_a_tuning_job_is_reviewed_too(client, service):
  spec = {
    "promptDatasetUri": "gs://my-bucket/train.jsonl",
    "baseTeacherModel": "text-unicorn@001",
    "reviewRationales": True,
  }
  body = {"baseModel": "t5-small", "distillationSpec": spec}
  name = client.post(f"/v1/{PARENT}/tuningJobs", json=body).json()["name"]
  job = service.get(name)
  annotate(service, job)
  service.store.change(name, ("QUEUED",), state="PAUSED")
  assert client.get(f"/v1/{name}").json()["state"] == "JOB_STATE_PAUSED"
  edit = {"row": 1, "etag": "0", "rationale": "Mine."}
  assert client.post(f"/v1/{name}:editRationale", json=edit).status_code == 200
  approved = client.post(f"/v1/{name}:approve", json={}).json()
  assert approved["state"] == "JOB_STATE_QUEUED"
  assert approved["distillationSpec"] == spec


def test_roles_and_the_log_of_who_did_what(service, job):
  callers = {role: Caller(f"the-{role}", {"my-project": role}) for role in ("viewer", "editor")}
  tokens = {f"token-of-{role}-16": caller for role, caller in callers.items()}
  app = make_app(service, Access(list(tokens), list(tokens.values())))
  url, edit = f"/v1/{job.name}", {"row": 1, "etag": "0", "rationale": "Mine."}
  with TestClient(app, base_url="http://127.0.0.1") as client:

    def call(role, method, verb, body=None):
      headers = {"authorization": f"Bearer token-of-{role}-16"}
      return client.request(method, f"{url}:{verb}", json=body, headers=headers).status_code

    assert call("viewer", "GET", "listRationales") == 200
    assert call("viewer", "POST", "editRationale", edit) == 403
    assert call("viewer", "POST", "approve", {}) == 403
    assert call("editor", "POST", "editRationale", edit) == 200
    assert call("editor", "POST", "approve", {}) == 200
  lines = [json.loads(line) for line in (service.root / "audit.jsonl").read_text().splitlines()]
  assert [(line["caller"], line["resource"].rpartition(":")[2]) for line in lines[-2:]] == [
    ("the-editor", "editRationale"), ("the-editor", "approve"),
  ]  # fmt: skip


EDIT_AND_DIE = """
import os, signal, sys
from dss_jax.jobs.api.reviews import Reviews, SentEdit
from dss_jax.jobs.service import open_service
edit = SentEdit(row=1, etag="0", rationale="Before the kill.")
Reviews(open_service(sys.argv[1])).edit(sys.argv[2], edit, "ann")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_edits_outlive_a_killed_process(service, job, rationales, client, url):
  process = subprocess.run([sys.executable, "-c", EDIT_AND_DIE, service.root, job.name])
  assert process.returncode == -signal.SIGKILL
  (row,) = rationales(filter="edited=true")["rationales"]
  assert (row["rationale"], row["edits"][0]["user"]) == ("Before the kill.", "ann")
  assert client.post(f"{url}:approve", json={}).status_code == 200
