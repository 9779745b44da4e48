"""Copies of models: in other models, projects and under keys, and in folders for other programs."""

import pathlib
import shutil

import pytest

from dss_jax.jobs.settings import Key
from dss_jax.storage.keys import write_key
from dss_jax.storage.sealed_folders import open_folder
from dss_jax.student.sealed_student import SEALED
from tests.jobs.api_server import EDITOR, PARENT, STRANGER, VIEWER

SIGN = PARENT.removeprefix("/v1/") + "/models/sign"
KEY = "projects/sums/locations/us-central1/keyRings/ring/cryptoKeys/key"
EXPORT = {
  "outputConfig": {
    "exportFormatId": "custom-trained",
    "artifactDestination": {"outputUriPrefix": "gs://data/out/"},
  }
}


@pytest.fixture
def two(server):
  """A server with sign@1 and sign@2, which is described."""
  for number in (1, 2):
    server.register("sign", lineage={"dataset": "secret"}, source_digest=f"digest {number}")
  server.call("PATCH", "/models/sign@2", {"displayName": "My sign!", "labels": {"team": "x"}})
  return server


@pytest.fixture
def with_key(two, tmp_path):
  """The same with a key, and a folder in memory."""
  if not pathlib.Path("/dev/shm").is_dir():
    pytest.skip("this machine has no /dev/shm")
  key = tmp_path / "key"
  write_key(key)
  keys = {KEY: Key(file=str(key), projects=("sums",))}
  two.settings = two.settings.model_copy(update={"keys": keys})
  two.start()
  yield two
  shutil.rmtree(two.service.private.memory, ignore_errors=True)


def copied(server, body, **options):
  """The answer of a copy that is done."""
  operation = server.call("POST", "/models:copy", body, **options)
  assert "CopyModelOperationMetadata" in operation["metadata"]["@type"]
  return server.wait(operation)


def test_a_copy_within_a_project(two):
  answer = copied(two, {"sourceModel": f"{SIGN}@2", "modelId": "other"})["response"]
  assert answer == {
    "@type": "type.googleapis.com/google.cloud.aiplatform.v1.CopyModelResponse",
    "model": SIGN.replace("sign", "other"),
    "modelVersionId": "1",
  }
  model = two.call("GET", "/models/other")
  assert (model["displayName"], model["labels"]["team"]) == ("My sign!", "x")
  assert model["modelSourceInfo"] == {"sourceType": "GENIE", "copy": True}
  assert model["metadata"] == two.call("GET", "/models/sign@2")["metadata"]
  version = two.service.registry("sums").version("other@1")
  assert (version.folder / "weights").read_bytes() == b"1234"
  assert version.record["source_digest"] == "digest 2"
  # The next version of another model, and a model of its own.
  again = copied(two, {"sourceModel": SIGN, "parentModel": SIGN.replace("sign", "other")})
  assert again["response"]["modelVersionId"] == "2"
  assert two.service.registry("sums").version("other@2").record["source_digest"] == "digest 1"
  named = copied(two, {"sourceModel": SIGN})["response"]["model"]
  assert named.rpartition("/")[2].isdecimal()


def test_a_copy_into_another_project(two):
  other = "/v1/projects/other/locations/europe-west4"
  operation = two.call("POST", f"{other}/models:copy", {"sourceModel": f"{SIGN}@2"})
  answer = two.wait(operation)["response"]
  assert answer["model"] == "projects/other/locations/europe-west4/models/sign"
  assert two.call("GET", f"/v1/{answer['model']}")["displayName"] == "My sign!"


@pytest.mark.parametrize(
  ("body", "status", "message"),
  [
    ({}, 400, "sourceModel: field required"),
    ({"sourceModel": "sign"}, 400, "sourceModel: must be a name like"),
    ({"sourceModel": SIGN.replace("sign", "none")}, 404, "models/none: does not exist"),
    ({"sourceModel": f"{SIGN}@9"}, 404, "models/sign@9: does not exist"),
    ({"sourceModel": SIGN, "modelId": "sign"}, 409, "models/sign: exists already"),
    ({"sourceModel": SIGN, "modelId": "SIGN"}, 400, "names must differ by more than case"),
    ({"sourceModel": SIGN, "modelId": "../x"}, 400, "modelId: '../x' can"),
    ({"sourceModel": SIGN, "modelId": "x", "parentModel": SIGN}, 400, "give one of the two"),
    ({"sourceModel": SIGN, "parentModel": SIGN.replace("sign", "none")}, 404, "models/none"),
    ({"sourceModel": SIGN, "encryptionSpec": {"kmsKeyName": KEY}}, 403, "is not configured here"),
  ],
)  # fmt: skip
def test_what_cannot_be_copied(body, status, message, two):
  assert message in two.call("POST", "/models:copy", body, status=status)["error"]["message"]


def test_a_copy_needs_roles_in_both_projects(guarded):
  guarded.register("sign")
  body = {"sourceModel": SIGN, "modelId": "copy"}
  guarded.call("POST", "/models:copy", body, token=VIEWER, status=403)
  assert guarded.call("POST", "/models:copy", body, token=EDITOR)
  other = PARENT.replace("sums", "other") + "/models:copy"
  error = guarded.call("POST", other, body, token=STRANGER, status=403)["error"]
  assert "is no viewer of the project 'sums'" in error["message"]


def test_copies_with_a_key(with_key, tmp_path):
  spec = {"encryptionSpec": {"kmsKeyName": KEY}}
  copied(with_key, {"sourceModel": f"{SIGN}@2", "modelId": "sealed", **spec})
  # The key of the original stays that of its copies.
  copied(with_key, {"sourceModel": SIGN.replace("sign", "sealed"), "modelId": "again"})
  registry = with_key.service.registry("sums")
  for name in ("sealed", "again"):
    version = registry.version(name)
    assert {path.name for path in version.folder.iterdir()} == {SEALED, "version.json"}
    assert not version.record.keys() & {"lineage", "metrics", "source_digest"}
    assert with_key.call("GET", f"/models/{name}")["encryptionSpec"] == spec["encryptionSpec"]
    with with_key.service.private.opened(version) as folder:
      assert (folder / "weights").read_bytes() == b"1234"
  other = "/v1/projects/other/locations/europe-west4/models:copy"
  body = {"sourceModel": SIGN.replace("sign", "sealed")}
  error = with_key.call("POST", other, body, status=400)["error"]
  assert error["status"] == "FAILED_PRECONDITION"
  assert "is not configured here for other" in error["message"]
  assert list(with_key.service.private.memory.iterdir()) == []


def exported(server, model, body=EXPORT):
  """The folder of an export that is done, as a client finds it."""
  operation = server.call("POST", f"/models/{model}:export", body)
  uri = operation["metadata"]["outputInfo"]["artifactOutputUri"]
  done = server.wait(operation)
  assert done["response"]["@type"].endswith("ExportModelResponse"), done
  return uri, pathlib.Path(uri.replace("gs://data", str(server.root / "bucket")))


def test_an_export(two):
  formats = [each["id"] for each in two.call("GET", "/models/sign")["supportedExportFormats"]]
  assert formats == ["hf", "t5x", "t5x-orbax", "custom-trained"]
  uri, folder = exported(two, "sign@2")
  assert uri.startswith("gs://data/out/model-export-My_sign_-")
  assert [path.name for path in folder.iterdir()] == ["weights"]
  assert exported(two, "sign@2")[0] != uri


def test_an_export_of_an_encrypted_student(with_key, tmp_path):
  spec = {"encryptionSpec": {"kmsKeyName": KEY}}
  copied(with_key, {"sourceModel": SIGN, "modelId": "sealed", **spec})
  _, folder = exported(with_key, "sealed")
  (path,) = folder.iterdir()
  assert path.name == "custom-trained.sealed"
  assert b"1234" not in path.read_bytes()
  open_folder(path, with_key.service.private.keyring.unlock_for("sums"), tmp_path / "opened")
  assert (tmp_path / "opened" / "weights").read_bytes() == b"1234"
  assert list(with_key.service.private.memory.iterdir()) == []
  (tmp_path / "key").unlink()
  error = with_key.call("POST", "/models/sealed:export", EXPORT, status=400)["error"]
  assert error["status"] == "FAILED_PRECONDITION"


@pytest.mark.parametrize(
  ("config", "status", "message"),
  [
    ({}, 400, "outputConfig.artifactDestination: field required"),
    ({"artifactDestination": {"outputUriPrefix": ""}}, 400, "outputUriPrefix: string should have"),
    ({"artifactDestination": {"outputUriPrefix": "/etc"}}, 403, "is outside the folders"),
    ({"artifactDestination": {"outputUriPrefix": "gs://data/.."}}, 400, "a part of the path"),
    ({"artifactDestination": {"outputUriPrefix": "gs://none/x"}}, 403, "is not configured"),
    ({"artifactDestination": {"outputUriPrefix": "gs://data/x"}, "exportFormatId": "tflite"}, 400,
     "is 'tflite', but there are hf, t5x, t5x-orbax, custom-trained"),
  ],
)  # fmt: skip
def test_what_cannot_be_exported(config, status, message, two):
  body = {"outputConfig": config}
  error = two.call("POST", "/models/sign:export", body, status=status)["error"]
  assert message in error["message"]


def test_an_export_that_fails_ends_its_operation(two):
  """What is registered here is no student, so no other format can be written."""
  body = {"outputConfig": {"artifactDestination": {"outputUriPrefix": "gs://data/out"}}}
  done = two.wait(two.call("POST", "/models/sign:export", body))
  assert done["error"]["code"] == 3
  assert "holds no config.gin" in done["error"]["message"]
  assert str(two.root) not in done["error"]["message"]
