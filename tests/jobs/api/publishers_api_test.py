"""Publishers' models: what the old names mean here, and who answers for them."""

import pytest

from tests.jobs.api_server import ApiServer

INSTANCES = {"instances": [{"content": "a row"}]}


@pytest.fixture
def server(tmp_path):
  server = ApiServer(
    tmp_path,
    students={"text-bison@001": {"student": "tiny"}, "text-bison@002": {"student": "tiny"}},
    teachers={"text-unicorn@001": {"name": "t5:large"}, "chat-bison@002": {"name": "t5:large"}},
    publisher_models={"text-bison@002": "sign@2"},
  )
  yield server
  server.stop()


@pytest.mark.parametrize(
  ("asked", "name", "version", "template", "kind"),
  [
    ("text-bison@002", "text-bison", "002", "text-bison@002", "text"),
    ("text-bison%40001", "text-bison", "001", "text-bison@001", "text"),
    ("text-bison", "text-bison", "002", "text-bison@002", "text"),
    ("text-bison-001", "text-bison", "001", "text-bison@001", "text"),
    ("text-unicorn@001", "text-unicorn", "001", "text-unicorn@001", "text"),
    ("chat-bison@002", "chat-bison", "002", "chat-bison@002", "chat"),
    ("t5-small", "t5-small", "default", "t5-small", "text"),
    # The label of a tuned t5-small, as clients read it.
    ("t5@small", "t5-small", "default", "t5-small", "text"),
    ("flan-t5@large", "flan-t5", "large", "flan-t5@large", "text"),
  ],
)
def test_what_clients_ask_for_first(asked, name, version, template, kind, server):
  model = server.call("GET", f"/v1/publishers/google/models/{asked}")
  assert (model["name"], model["versionId"]) == (f"publishers/google/models/{name}", version)
  assert model["publisherModelTemplate"] == (
    "projects/{user-project}/locations/{location}/publishers/google/models/" + template
  )
  assert model["predictSchemata"]["instanceSchemaUri"].endswith(f"/{kind}_generation_1.0.0.yaml")


@pytest.mark.parametrize("name", ["gemini-pro", "text-bison@003", "none"])
def test_what_is_not_configured(name, server):
  server.call("GET", f"/v1/publishers/google/models/{name}", status=404)
  server.call("POST", f"/publishers/google/models/{name}:predict", INSTANCES, status=404)


def test_a_student_answers_for_a_retired_model(server):
  path = "/publishers/google/models/text-bison@002"
  server.call("POST", f"{path}:predict", INSTANCES, status=404)
  server.register("sign")
  server.register("sign")
  answer = server.call("POST", f"{path}:predict", INSTANCES)
  assert answer["predictions"][0]["content"] == "label of a row"
  assert (answer["model"], answer["modelVersionId"]) == (path[1:], "2")
  assert server.call("POST", f"{path}:countTokens", INSTANCES)["totalTokens"] == 2
  assert server.loaded == ["sign@2"]
  error = server.call(
    "POST", "/publishers/google/models/text-bison@001:predict", INSTANCES, status=400
  )
  assert error["error"]["status"] == "FAILED_PRECONDITION"
  assert "no student answers for this model" in error["error"]["message"]
  # Another project has no such student.
  other = "/v1/projects/other/locations/us-central1" + path
  server.call("POST", f"{other}:predict", INSTANCES, status=404)


def test_batches_are_answered_for_a_retired_model(server):
  server.register("sign")
  server.register("sign")
  job = server.call("POST", "/batchPredictionJobs", {
    "model": "publishers/google/models/text-bison@002",
    "inputConfig": {"gcsSource": {"uris": ["gs://data/x"]}},
    "outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://data/y"}},
  })  # fmt: skip
  assert job["modelVersionId"] == "2"
