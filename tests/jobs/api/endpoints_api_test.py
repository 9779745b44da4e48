"""The routes of endpoints: what is deployed, what answers, and what survives."""

import json

import pytest

from tests.jobs.api_server import PARENT

MODEL = PARENT.removeprefix("/v1/") + "/models/sign"
INSTANCES = {"instances": [{"content": "a row"}]}


@pytest.fixture
def two(server):
  """A server with sign@1 and sign@2."""
  server.register("sign")
  server.register("sign")
  return server


def create(server, **body):
  """Returns the path of a new endpoint."""
  operation = server.call("POST", "/endpoints", {"displayName": "hotline", **body})
  assert operation["done"]
  assert operation["response"]["@type"].endswith("google.cloud.aiplatform.v1.Endpoint")
  return "/v1/" + operation["response"]["name"]


def deploy(server, path, model=MODEL, status=200, **body):
  """Returns the deployed model, or what the operation or the request fails with."""
  sent = {"deployedModel": {"model": model, "dedicatedResources": {"minReplicaCount": 1}}, **body}
  answer = server.call("POST", f"{path}:deployModel", sent, status=status)
  if status != 200:
    return answer["error"]
  operation = server.wait(answer)
  return operation["error"] if "error" in operation else operation["response"]["deployedModel"]


def test_an_endpoint_from_its_creation_to_its_end(two):
  path = create(two, description="of sums", labels={"team": "x"})
  shown = two.call("GET", path)
  assert (shown["displayName"], shown["labels"]) == ("hotline", {"team": "x"})
  assert {"createTime", "updateTime", "etag"} <= set(shown)
  assert two.call("POST", f"{path}:predict", INSTANCES, status=400)["error"]["status"] == (
    "FAILED_PRECONDITION"
  )
  deployed = deploy(two, path)
  assert (deployed["model"], deployed["modelVersionId"]) == (MODEL, "1")
  shown = two.call("GET", path)
  assert shown["trafficSplit"] == {deployed["id"]: 100}
  model = two.call("GET", "/models/sign")
  assert model["deployedModels"] == [
    {"endpoint": shown["name"], "deployedModelId": deployed["id"], "displayName": "sign"}
  ]
  assert "deployedModels" not in two.call("GET", "/models/sign@2")
  answer = two.call("POST", f"{path}:predict", INSTANCES)
  assert answer["predictions"][0]["content"] == "label of a row"
  assert answer["deployedModelId"] == deployed["id"]
  assert (answer["model"], answer["modelVersionId"]) == (MODEL, "1")
  # What is deployed stays.
  error = two.call("DELETE", "/models/sign", status=400)["error"]
  assert error["status"] == "FAILED_PRECONDITION"
  assert "uses it; undeploy it there first" in error["message"]
  assert "undeploy them" in two.call("DELETE", path, status=400)["error"]["message"]
  body = {"deployedModelId": deployed["id"]}
  assert two.call("POST", f"{path}:undeployModel", body)["done"]
  two.call("POST", f"{path}:undeployModel", body, status=404)
  assert "trafficSplit" not in two.call("GET", path)
  two.call("DELETE", path)
  two.call("GET", path, status=404)
  two.call("DELETE", "/models/sign")


def test_deployments_survive_a_restart(two):
  path = create(two)
  deploy(two, path)
  assert two.loaded == ["sign@1"]
  two.start()
  assert two.call("POST", f"{path}:predict", INSTANCES)["predictions"]
  assert two.loaded == ["sign@1", "sign@1"]
  two.call("DELETE", "/models/sign", status=400)


def test_what_a_killed_process_marked_is_released(two):
  path = create(two)
  deploy(two, path)
  registry = two.service.registry("sums")
  registry.use(path.removeprefix("/v1/"), "sign@2")
  registry.use("hotline", "sign@2")
  operation = two.call("POST", "/endpoints", {})
  two.start()
  assert registry.version("sign@2").endpoints == ("hotline",)
  assert registry.version("sign@1").endpoints == (path.removeprefix("/v1/"),)
  assert two.call("GET", "/v1/" + operation["name"])["done"]


def test_operations_of_a_killed_server_are_aborted(two):
  path = create(two)
  two.student.gate.clear()
  resources = two.root / "resources.sqlite"
  operation = two.call("POST", f"{path}:deployModel", {"deployedModel": {"model": MODEL}})
  two.wait(operation)
  import sqlite3

  with sqlite3.connect(resources) as database:
    database.execute(
      "update resources set value = ? where name = ?",
      (json.dumps({**operation, "done": False}), operation["name"]),
    )
  two.start()
  failed = two.call("GET", "/v1/" + operation["name"])
  assert failed["done"]
  assert failed["error"]["code"] == 10
  assert "the server was restarted" in failed["error"]["message"]


def test_traffic_is_split(two):
  path = create(two)
  first = deploy(two, path)["id"]
  second = deploy(two, path, f"{MODEL}@2", deployedModel={"model": f"{MODEL}@2", "id": "second"})
  assert second["id"] == "second"
  answer = two.call("POST", f"{path}:predict", INSTANCES)
  assert answer["deployedModelId"] == first
  two.call("PATCH", path, {"trafficSplit": {first: 0, "second": 100}}, updateMask="trafficSplit")
  answer = two.call("POST", f"{path}:predict", INSTANCES)
  assert (answer["deployedModelId"], answer["modelVersionId"]) == ("second", "2")
  error = two.call("POST", f"{path}:undeployModel", {"deployedModelId": "second"}, status=400)
  assert "100 % of the requests go to second" in error["error"]["message"]
  body = {"deployedModelId": "second", "trafficSplit": {first: 100}}
  two.call("POST", f"{path}:undeployModel", body)
  third = deploy(two, path, f"{MODEL}@2", trafficSplit={first: 40, "0": 60})
  assert two.call("GET", path)["trafficSplit"] == {first: 40, third["id"]: 60}
  for split, message in (
    ({first: 50}, "the shares must be from 0 to 100, and 100 together"),
    ({first: 101}, "less than or equal to 100"),
    ({first: 200, third["id"]: -100}, "trafficSplit"),
    ({first: 50, "none": 50}, "'none' is not a deployed model"),
    ([], "trafficSplit: input should be a valid dictionary"),
  ):
    error = two.call("PATCH", path, {"trafficSplit": split}, status=400)["error"]
    assert message in error["message"]


@pytest.mark.parametrize(
  ("model", "status", "message"),
  [
    (MODEL.replace("sums", "other"), 403, "is of another project than the request, sums"),
    (MODEL + "@7", 404, "models/sign@7: does not exist here"),
    (MODEL.replace("sign", "none"), 404, "models/none: does not exist here"),
    ("sign", 400, "deployedModel.model: must be a name like projects/"),
    (MODEL.replace("models", "endpoints"), 400, "must be a name like projects/"),
    (MODEL + "/../../x", 400, "must be a name like projects/"),
    (7, 400, "deployedModel.model: input should be a valid string"),
  ],
)
def test_what_cannot_be_deployed(model, status, message, two):
  path = create(two)
  assert message in deploy(two, path, model, status=status)["message"]
  assert two.loaded == []


def test_a_student_that_cannot_be_loaded_fails_the_operation(two):
  def load(version):
    raise RuntimeError(f"out of memory at {version.folder}")

  two._load = load
  path = create(two)
  error = deploy(two, path)
  assert error == {"code": 13, "message": "the server failed; its log says why"}
  assert "deployedModels" not in two.call("GET", path)


def test_ids_and_lists(two):
  path = "/endpoints/mine-1"
  assert two.call("POST", "/endpoints", {"displayName": "b"}, endpointId="mine-1")["done"]
  error = two.call("POST", "/endpoints", {}, endpointId="mine-1", status=409)["error"]
  assert error["status"] == "ALREADY_EXISTS"
  for wrong in ("../x", "A", "x" * 64, "-x", "a/b"):
    two.call("POST", "/endpoints", {}, endpointId=wrong, status=400)
  create(two, displayName="a")
  found = two.call("GET", "/endpoints", orderBy="display_name")["endpoints"]
  assert [each["displayName"] for each in found] == ["a", "b"]
  found = two.call("GET", "/endpoints", filter='endpoint="mine-1"')["endpoints"]
  assert [each["displayName"] for each in found] == ["b"]
  assert two.call("GET", "/v1/projects/sums/locations/europe-west4/endpoints") == {}
  assert len(two.call("GET", "/v1/projects/sums/locations/-/endpoints")["endpoints"]) == 2
  assert two.call("PATCH", path, {"displayName": "c"}, updateMask="displayName")["displayName"] == (
    "c"
  )
  two.call("PATCH", path, {"name": "c"}, updateMask="name", status=400)
  for verb in ("mutateDeployedModel", "rawPredict"):
    two.call("POST", f"{path}:{verb}", {}, status=501)
  two.call("POST", f"{path}:fly", {}, status=400)


def test_streams_and_tokens_in_both_versions(two):
  path = create(two)
  deploy(two, path)
  body = {"inputs": [{"structVal": {"content": {"stringVal": ["one"]}}}]}
  for version in ("v1", "v1beta1"):
    at = path.replace("v1", version)
    response = two.client.post(f"{at}:serverStreamingPredict", json=body)
    parts = [each["outputs"][0]["structVal"]["content"]["stringVal"][0] for each in response.json()]
    assert "".join(parts) == "label of one"
    counted = two.call("POST", f"{at}:countTokens", {"instances": [{"content": "one two"}]})
    assert counted == {"totalTokens": 2, "totalBillableCharacters": 7}
  operation = two.call("POST", f"{PARENT.replace('v1', 'v1beta1')}/endpoints", {})
  assert operation["response"]["@type"].endswith("google.cloud.aiplatform.v1beta1.Endpoint")
  for wrong in ({}, {"instances": [{"content": "x"}], "parameters": {"topX": 1}}):
    two.call("POST", f"{path}:predict", wrong, status=400)


def test_more_than_can_wait_is_refused_at_once(two):
  path = create(two)
  deploy(two, path)
  body = {"instances": [{"content": "x"}] * 128, "parameters": {"candidateCount": 8}}
  response = two.client.post(f"{path}:predict", json=body)
  error = response.json()["error"]
  assert (response.status_code, error["status"]) == (429, "RESOURCE_EXHAUSTED")
  assert error["details"][0]["reason"] == "RATE_LIMIT_EXCEEDED"
  assert int(response.headers["retry-after"]) >= 1
