"""Jobs and students with a key: who may use one, and what happens without it."""

import pathlib
import re
import shutil

import pytest
import yaml

from dss_jax.errors import UserError
from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.encryption.working_folder import LOG
from dss_jax.jobs.queue.runner import Runner
from dss_jax.jobs.settings import Settings
from dss_jax.jobs.store import STARTED
from dss_jax.storage.keys import write_key
from dss_jax.storage.sealed import SealedError
from dss_jax.storage.sealed_folders import files_below, seal_files
from dss_jax.student.sealed_student import SEALED, sealed_name
from dss_jax.student.student import Student
from tests.jobs.api.tuning_jobs_api_test import SUPERVISED
from tests.jobs.workplace import PARENT, pipeline

KEY = "projects/my-project/locations/europe-west4/keyRings/ring/cryptoKeys/key"
URL = f"/v1/{PARENT}/pipelineJobs"
WITH_KEY = {"encryptionSpec": {"kmsKeyName": KEY}}

pytestmark = pytest.mark.skipif(
  not pathlib.Path("/dev/shm").is_dir(), reason="this machine has no /dev/shm"
)


@pytest.fixture
def key_file(workplace):
  path = workplace.folder / "key"
  write_key(path)
  return path


@pytest.fixture
def service(workplace, key_file):
  service = workplace.open(keys={KEY: {"file": str(key_file), "projects": ["my-project"]}})
  yield service
  shutil.rmtree(service.private.memory, ignore_errors=True)


@pytest.fixture
def job(service):
  """A job that is about to start."""
  name = service.create("pipelineJobs", "my-project", "europe-west4", pipeline(**WITH_KEY)).name
  service.store.change(name, ("QUEUED",), state="PENDING", device_set="a")
  service.folder(service.get(name)).mkdir(parents=True)
  return service.get(name)


@pytest.fixture
def student(service, job):
  """A version of a model whose files are sealed."""
  plain = service.root / "plain"
  plain.mkdir()
  (plain / "config.gin").write_text("secret")
  service.private.prepare(job)
  data_key = service.private.key_of(job)

  def fill(folder):
    seal_files(folder / SEALED, data_key, sealed_name("sums"), files_below(plain))

  record = {"student": "small", "parameters": 7, "encryption_spec": {"kmsKeyName": KEY}}
  return service.registry("my-project").register("sums", record, fill)


def error_of(response, status):
  error = response.json()["error"]
  assert (response.status_code, error["code"]) == (status, status), error
  assert "\n" not in error["message"]
  return error


def test_a_job_says_its_key(client):
  job = client.post(URL, json=pipeline(**WITH_KEY)).json()
  assert job["encryptionSpec"] == {"kmsKeyName": KEY}
  tuning = client.post(f"/v1/{PARENT}/tuningJobs", json={**SUPERVISED, **WITH_KEY}).json()
  assert tuning["encryptionSpec"] == {"kmsKeyName": KEY}
  by_parameter = client.post(URL, json=pipeline({"encryption_spec_key_name": KEY}))
  assert by_parameter.status_code == 200


@pytest.mark.parametrize(
  ("change", "status", "kind", "message"),
  [
    ({"kmsKeyName": "my-key"}, 400, "INVALID_ARGUMENT", "is not of the form projects/P/"),
    ({"kmsKeyName": KEY + "2"}, 403, "PERMISSION_DENIED", "is not configured here for my-proj"),
  ],
)
def test_keys_that_are_none(client, service, change, status, kind, message):
  response = client.post(URL, json=pipeline(encryptionSpec=change))
  assert error_of(response, status)["status"] == kind
  assert message in response.json()["error"]["message"]
  assert not service.store.newest()


def test_two_keys_are_one_too_many(client):
  body = pipeline({"encryption_spec_key_name": KEY + "2"}, **WITH_KEY)
  assert "is another key than" in error_of(client.post(URL, json=body), 400)["message"]


def test_nobody_reviews_the_rationales_of_an_encrypted_job(client):
  body = pipeline({"review_rationales": True}, **WITH_KEY)
  assert "review_rationales: nobody" in error_of(client.post(URL, json=body), 400)["message"]


def test_a_key_is_for_its_projects(client):
  url = URL.replace("my-project", "other-project")
  response = client.post(url, json=pipeline({"project": "other-project"}, **WITH_KEY))
  assert error_of(response, 403)["status"] == "PERMISSION_DENIED"


@pytest.mark.parametrize("damage", ["gone", "open", "other"])
def test_without_its_key_a_job_neither_begins_nor_starts(client, service, job, key_file, damage):
  if damage == "other":
    key_file.unlink()
    write_key(key_file)
  elif damage == "open":
    key_file.chmod(0o644)
  else:
    key_file.unlink()
  if damage != "other":
    error = error_of(client.post(URL, json=pipeline(**WITH_KEY)), 400)
    assert error["status"] == "FAILED_PRECONDITION"
  Runner(service, "tests.jobs.none").tick()
  failed = service.get(job.name)
  assert (failed.state, failed.error["code"]) == ("FAILED", 9)
  assert KEY in failed.error["message"]
  assert "\n" not in failed.error["message"]
  # Nor is its log read.
  watched = client.get(f"/v1/{job.name}:watch")
  assert error_of(watched, 400)["status"] == "FAILED_PRECONDITION"


def test_memory_that_is_a_disk_is_refused(workplace, key_file):
  service = workplace.open(keys={KEY: {"file": str(key_file)}}, memory_folder=str(workplace.folder))
  with pytest.raises(ApiError, match="is not on a file system in memory") as error:
    service.create("pipelineJobs", "my-project", "europe-west4", pipeline(**WITH_KEY))
  assert error.value.kind == "FAILED_PRECONDITION"


def test_a_process_learns_where_the_key_is(service, job, key_file):
  environment = service.private.prepare(job)
  secret = key_file.read_text().strip()
  assert str(key_file) in str(environment)
  assert secret not in str(environment)
  assert secret not in (service.root / "jobs.sqlite").read_bytes().decode("latin-1")
  folder = service.working_folder(job)
  assert folder.is_relative_to("/dev/shm")
  assert folder.stat().st_mode & 0o777 == 0o700
  assert {environment[each] for each in ("TMPDIR", "DSS_CACHE_DIR")} == {
    str(folder / "tmp"), str(folder / "cache"),
  }  # fmt: skip


def test_the_log_survives_and_memory_is_emptied(service, job):
  """What a killed process had not sealed of its log is sealed by the server."""
  private = service.private
  for line in ("first\n", "second\n"):
    private.prepare(job)
    with (service.working_folder(job) / LOG).open("a") as log:
      log.write(line)
    (service.working_folder(job) / "model").mkdir()
    (service.working_folder(job) / "model" / "rows").write_text("secret")
    with service.open_file(job, LOG) as log:
      assert log.read().decode().endswith(line)
    runner = Runner(service, "tests.jobs.none")
    service.store.change(job.name, STARTED, state="QUEUED")
    runner._remove_left()
    assert not service.working_folder(job).exists()
    service.store.change(job.name, ("QUEUED",), state="PENDING")
  assert (service.folder(job) / f"{LOG}.sealed").exists()
  assert b"first" not in (service.folder(job) / f"{LOG}.sealed").read_bytes()
  with service.open_file(job, LOG) as log:
    assert log.read() == b"first\nsecond\n"
  with pytest.raises(FileNotFoundError):
    service.open_file(job, "model/metrics.jsonl")


def test_what_a_killed_server_left_is_removed(service, job):
  private = service.private
  private.prepare(job)
  for name in (".student-1", "a-job-that-was-deleted"):
    (private.memory / name).mkdir()
  private.remove_students()
  runner = Runner(service, "tests.jobs.none")
  runner._remove_left()
  assert [path.name for path in private.memory.iterdir()] == [job.folder]


def test_a_student_is_opened_with_its_key(service, student, key_file):
  private = service.private
  private.check_student("my-project", student)
  with private.opened(student) as folder:
    assert folder.is_relative_to("/dev/shm")
    assert (folder / "config.gin").read_text() == "secret"
  assert not folder.exists()
  with pytest.raises(SealedError, match="is not configured here for other-project"):
    private.check_student("other-project", student)
  key_file.unlink()
  for opening in (lambda: private.check_student("my-project", student),
                  lambda: private.opened(student).__enter__()):  # fmt: skip
    with pytest.raises(SealedError, match="its file cannot be read"):
      opening()


def test_a_student_s_place_is_another_model_s(service, student):
  registry = service.registry("my-project")
  other = registry.register(
    "other", student.record, lambda folder: shutil.copy(student.folder / SEALED, folder / SEALED)
  )
  with pytest.raises(SealedError, match=r"is models/sums of .*, put in the place of another file"):
    service.private.opened(other).__enter__()


def test_a_sealed_student_says_how_it_is_used(service, student):
  for given in (student.folder, "sums@1"):
    with pytest.raises(UserError, match=re.escape(f"is encrypted with the key {KEY}")) as error:
      Student.open(given, service.registry("my-project").root)
    assert "dss jobs open --key" in str(error.value)


def test_a_model_says_its_key(client, student):
  model = client.get(f"/v1/{PARENT}/models/sums").json()
  assert model["encryptionSpec"] == {"kmsKeyName": KEY}
  assert "metrics" not in model["metadata"]


def test_a_sealed_student_does_not_teach(client, student):
  body = pipeline({"teacher_model_reference": f"{PARENT}/models/sums@1"})
  assert "is encrypted with a key" in error_of(client.post(URL, json=body), 400)["message"]


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"my-key": {"file": "k"}}, "String should match pattern"),
    ({KEY: {}}, "give one of file and plugin"),
    ({KEY: {"file": "k", "plugin": "a:b"}}, "give one of file and plugin"),
    ({KEY: {"plugin": "os.system"}}, "String should match pattern"),
  ],
)
def test_settings_that_are_wrong(workplace, keys, message):
  with pytest.raises(UserError, match=message):
    workplace.open(keys=keys)


def test_a_key_s_file_is_beside_the_settings(tmp_path):
  from dss_jax.jobs.settings import read_settings

  (tmp_path / "jobs.yaml").write_text(yaml.safe_dump({"keys": {KEY: {"file": "keys/one"}}}))
  assert read_settings(tmp_path).keys[KEY].file == str(tmp_path / "keys" / "one")
  assert Settings().memory_folder == "/dev/shm"
