"""tuningJobs over HTTP."""

import pytest

from dss_jax.jobs.store import STARTED
from tests.jobs.api.pipeline_jobs_api_test import error_of
from tests.jobs.workplace import PARENT

URL = f"/v1beta1/{PARENT}/tuningJobs"
DISTILLATION = {
  "baseModel": "t5-small",
  "tunedModelDisplayName": "Mine",
  "distillationSpec": {
    "promptDatasetUri": "gs://my-bucket/train.jsonl",
    "validationDatasetUri": "gs://my-bucket/eval.jsonl",
    "baseTeacherModel": "text-unicorn@001",
    "hyperParameters": {"epochCount": "1", "learningRateMultiplier": 1.0},
  },
}
SUPERVISED = {
  "baseModel": "t5-small",
  "supervisedTuningSpec": {"trainingDatasetUri": "gs://my-bucket/labelled.jsonl"},
}


def test_create_get_list_cancel(client, service):
  response = client.post(URL, json=DISTILLATION)
  assert response.status_code == 200, response.text
  job = response.json()
  assert job["state"] == "JOB_STATE_QUEUED"
  assert {name: job[name] for name in DISTILLATION} == DISTILLATION
  assert job["name"].rpartition("/")[2].isdecimal()
  assert client.get(f"/v1/{job['name']}").json() == job
  other = client.post(URL, json=SUPERVISED).json()
  listed = client.get(URL, params={"filter": 'base_model="t5-small"', "pageSize": 1}).json()
  assert [each["name"] for each in listed["tuningJobs"]] == [other["name"]]
  assert client.post(f"/v1/{job['name']}:cancel", json={}).json() == {}
  assert client.get(f"/v1/{job['name']}").json()["state"] == "JOB_STATE_CANCELLED"
  made = {"model": "mine", "version": 2, "location": "europe-west4", "student": "t5-small",
          "endpoint": f"{PARENT}/endpoints/1"}  # fmt: skip
  service.store.change(other["name"], ("QUEUED", *STARTED), state="SUCCEEDED", result=made)
  assert client.get(f"/v1/{other['name']}").json()["tunedModel"] == {
    "model": f"{PARENT}/models/mine@2", "endpoint": f"{PARENT}/endpoints/1",
  }  # fmt: skip


def changed(body, spec, **values):
  return {**body, spec: {**body[spec], **values}}


@pytest.mark.parametrize(
  "body",
  [
    {},
    {"baseModel": "t5-small"},
    {**DISTILLATION, **SUPERVISED},
    {**DISTILLATION, "baseModel": ""},
    {**DISTILLATION, "baseModel": "gemini"},
    {**DISTILLATION, "baseModel": 3},
    {**DISTILLATION, "tunedModelDisplayName": "x" * 129},
    {**DISTILLATION, "labels": {"A": "x"}},
    {**DISTILLATION, "encryptionSpec": {"kmsKeyName": "k"}},
    {**DISTILLATION, "serviceAccount": "root"},
    {**DISTILLATION, "preferenceOptimizationSpec": {}},
    changed(DISTILLATION, "distillationSpec", promptDatasetUri=""),
    changed(DISTILLATION, "distillationSpec", promptDatasetUri="gs://my-bucket/none"),
    changed(DISTILLATION, "distillationSpec", promptDatasetUri="/etc/passwd"),
    changed(DISTILLATION, "distillationSpec", validationDatasetUri="gs://x/eval"),
    changed(DISTILLATION, "distillationSpec", baseTeacherModel=""),
    changed(DISTILLATION, "distillationSpec", baseTeacherModel="gpt"),
    changed(DISTILLATION, "distillationSpec", tunedTeacherModelSource="projects/p"),
    changed(DISTILLATION, "distillationSpec", sftLossWeightMultiplier=2),
    changed(DISTILLATION, "distillationSpec", hyperParameters={"epochCount": 0}),
    changed(DISTILLATION, "distillationSpec", hyperParameters={"epochCount": "x"}),
    changed(DISTILLATION, "distillationSpec", hyperParameters={"batchSize": -1}),
    changed(DISTILLATION, "distillationSpec", hyperParameters={"learningRateMultiplier": 0}),
    changed(DISTILLATION, "distillationSpec", hyperParameters=[]),
    changed(SUPERVISED, "supervisedTuningSpec", trainingDatasetUri="gs://my-bucket/wrong.jsonl"),
    changed(SUPERVISED, "supervisedTuningSpec", trainingDatasetUri=["gs://my-bucket"]),
    changed(SUPERVISED, "supervisedTuningSpec", unknown=1),
  ],
)
def test_wrong_bodies(client, service, workplace, body):
  (workplace.bucket / "wrong.jsonl").write_text('{"input_text": 3}\n')
  message = error_of(client.post(URL, json=body))
  assert str(workplace.folder) not in message
  assert not service.store.newest()


def test_all_that_is_wrong_is_said(client):
  body = changed(
    DISTILLATION, "distillationSpec", promptDatasetUri="gs://no/x", baseTeacherModel=""
  )
  message = error_of(client.post(URL, json={**body, "baseModel": "bert"}))
  for part in (
    "distillationSpec.promptDatasetUri: the bucket 'no'",
    "baseTeacherModel",
    "baseModel",
  ):
    assert part in message
