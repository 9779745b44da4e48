"""The routes of models over a registry."""

import pytest

LABEL = "google-vertex-llm-tuning-base-model-id"


@pytest.fixture
def two(server):
  """A server with sign@1 and sign@2."""
  server.register("sign")
  server.register("sign")
  return server


@pytest.mark.parametrize("path", ["/models/sign", "/models/sign@1", "/models/sign%401",
                                  "/models/sign@default"])  # fmt: skip
def test_get(path, two):
  model = two.call("GET", path, **{"$alt": "json;enum-encoding=int", "unknown": "x"})
  assert model["name"] == "projects/sums/locations/us-central1/models/sign"
  assert (model["versionId"], model["versionAliases"]) == ("1", ["default"])
  assert model["displayName"] == "sign"
  assert model["labels"] == {LABEL: "t5-small"}
  assert model["baseModelSource"]["genieSource"]["baseModelUri"].endswith("models/t5@small")
  assert model["createTime"].endswith("Z")
  assert model["metadata"]["metrics"] == {"a": 0.5}
  assert "deployedModels" not in model
  assert str(two.root) not in str(model)
  assert two.call("GET", "/models/sign@2")["versionId"] == "2"


@pytest.mark.parametrize("path", ["/models/sing", "/models/sign@3", "/models/sign@stable"])
def test_what_is_not_there(path, two):
  error = two.call("GET", path, status=404)["error"]
  assert error["status"] == "NOT_FOUND"
  assert "does not exist here" in error["message"]
  # Neither where the registry is, nor which other models there are.
  assert str(two.root) not in error["message"]


def test_models_of_other_projects_are_not_there(two):
  assert two.call("GET", "/v1/projects/other/locations/us-central1/models") == {}
  two.call("GET", "/v1/projects/other/locations/us-central1/models/sign", status=404)


def test_list(two):
  two.register("other")
  two.call("PATCH", "/models/other", {"labels": {"team": "x", LABEL: "text-bison-002"}})
  found = two.call("GET", "/models")["models"]
  assert sorted(each["name"].rpartition("/")[2] for each in found) == ["other", "sign"]
  assert "id" not in found[0]
  for text, names in (
    (f'labels.{LABEL}="text-bison-002"', ["other"]),
    ('display_name="sign"', ["sign"]),
    ("model=sign OR labels.team=x", ["other", "sign"]),
    ('base_model_name:"*t5@small"', ["sign"]),
  ):
    found = two.call("GET", "/models", filter=text, orderBy="display_name").get("models", [])
    assert [each["displayName"] for each in found] == names
  first = two.call("GET", "/models", pageSize=1, orderBy="display_name")
  second = two.call(
    "GET", "/models", pageSize=1, orderBy="display_name", pageToken=first["nextPageToken"]
  )
  assert second["models"][0]["displayName"] == "sign"
  assert "nextPageToken" not in second


def test_versions(two):
  found = two.call("GET", "/models/sign:listVersions")["models"]
  assert [each["versionId"] for each in found] == ["1", "2"]
  assert {each["name"].rpartition("/")[2] for each in found} == {"sign"}
  first = two.call("GET", "/models/sign:listVersions", pageSize=1)
  page = two.call("GET", "/models/sign:listVersions", pageSize=1, pageToken=first["nextPageToken"])
  assert [each["versionId"] for each in page["models"]] == ["2"]


def test_patch_changes_what_its_mask_names(two):
  body = {"displayName": "Signs", "description": "of sums", "labels": {"team": "x"}}
  model = two.call("PATCH", "/models/sign@2", body, updateMask="display_name,labels")
  assert (model["displayName"], model["labels"]["team"], model["versionId"]) == ("Signs", "x", "2")
  assert "description" not in model
  assert model["updateTime"] != model["createTime"]
  model = two.call("PATCH", "/models/sign@2", {}, updateMask="displayName")
  assert (model["displayName"], model["labels"]["team"]) == ("sign", "x")
  assert two.call("GET", "/models/sign")["displayName"] == "sign"


@pytest.mark.parametrize(
  ("body", "mask", "message"),
  [
    ({"displayName": "x"}, "name", "updateMask: 'name' cannot be changed; there are"),
    ({"displayName": "x" * 129}, "", "displayName: string should have at most 128"),
    ({"displayName": 7}, "", "displayName: input should be a valid string"),
    ({"labels": {"A": "x"}}, "", "labels"),
    ({"labels": {str(number): "x" for number in range(65)}}, "", "more than 64 labels"),
    ({"labels": []}, "", "labels: input should be a valid dictionary"),
    ([], "", "the body must be a JSON object"),
  ],
)
def test_what_cannot_be_patched(body, mask, message, two):
  error = two.call("PATCH", "/models/sign", body, status=400, updateMask=mask)["error"]
  assert message in error["message"]
  assert error["status"] == "INVALID_ARGUMENT"


def test_aliases(two):
  body = {"versionAliases": ["stable", "default"]}
  model = two.call("POST", "/models/sign@2:mergeVersionAliases", body)
  assert model["versionAliases"] == ["default", "stable"]
  assert two.call("GET", "/models/sign")["versionId"] == "2"
  assert two.call("GET", "/models/sign@stable")["versionId"] == "2"
  model = two.call("POST", "/models/sign@2:mergeVersionAliases", {"versionAliases": ["-stable"]})
  assert model["versionAliases"] == ["default"]
  for aliases, message in (
    (["-stable"], "has no alias 'stable'"),
    (["7"], "cannot be an alias"),
    (["latest"], "always means the newest"),
    ([], "versionAliases: list should have at least 1"),
    (["ab"] * 17, "versionAliases: list should have at most 16"),
    ("stable", "versionAliases: input should be a valid list"),
    ([7], "versionAliases.0: input should be a valid string"),
  ):
    body = {"versionAliases": aliases}
    error = two.call("POST", "/models/sign:mergeVersionAliases", body, status=400)["error"]
    assert message in error["message"]


def test_delete(two):
  two.register("other")
  operation = two.call("DELETE", "/models/sign@1:deleteVersion", status=400)["error"]
  assert operation["status"] == "FAILED_PRECONDITION"
  assert "the alias default means it" in operation["message"]
  operation = two.call("DELETE", "/models/sign@2:deleteVersion")
  assert operation["done"]
  assert operation["response"] == {"@type": "type.googleapis.com/google.protobuf.Empty"}
  assert two.call("GET", f"/ui/{operation['name']}") == operation
  two.call("GET", "/models/sign@2", status=404)
  two.call("DELETE", "/models/sign@1", status=400)
  two.call("DELETE", "/models/sign:deleteVersion", status=400)
  two.call("DELETE", "/models/sign")
  two.call("GET", "/models/sign", status=404)
  two.call("DELETE", "/models/sign", status=404)
  two.call("GET", "/models/other")


def test_what_models_do_not_have(two):
  error = two.call("POST", "/models/sign:updateExplanationDataset", {}, status=501)["error"]
  assert error["status"] == "UNIMPLEMENTED"


@pytest.mark.parametrize(
  ("body", "status", "message"),
  [
    ({}, 400, "model: field required"),
    ({"model": {"displayName": "x"}}, 400, "model.artifactUri: is required"),
    ({"model": {"artifactUri": "/etc"}}, 403, "model.artifactUri: is outside the folders"),
    ({"model": {"artifactUri": "gs://data/../../etc"}}, 400, "a part of the path is '..'"),
    ({"model": {"artifactUri": "gs://other/x"}}, 403, "the bucket 'other' is not configured"),
    ({"model": {"artifactUri": "gs://data/none"}}, 400, "gs://data/none: holds no"),
    ({"model": {"artifactUri": "gs://data/x"}, "modelId": "../x"}, 400, "modelId: '../x' can"),
    ({"model": {"artifactUri": "gs://data/x"}, "parentModel": "sign"}, 400, "parentModel: must be"),
    ({"model": {"artifactUri": "gs://data/x"}, "parentModel":
      "projects/other/locations/us-central1/models/sign"}, 403, "is of another project"),
  ],
)  # fmt: skip
def test_what_cannot_be_uploaded(body, status, message, two):
  error = two.call("POST", "/models:upload", body, status=status)["error"]
  assert message in error["message"]
  assert str(two.root) not in error["message"]
