"""Encrypted jobs in the console: with their key they are shown, and without it they say so."""

import pathlib
import shutil

import pytest

from dss_jax.console.wizard_values import KEY as KEY_FIELD
from dss_jax.jobs.encryption.sealed_job import SealedJob
from dss_jax.storage.atomic import write_text
from dss_jax.storage.keys import write_key
from tests.console.plain_browser import Browser
from tests.jobs.workplace import Workplace, pipeline

KEY = "projects/my-project/locations/europe-west4/keyRings/ring/cryptoKeys/key"
CREATE = "/console/projects/my-project/create"

pytestmark = pytest.mark.skipif(
  not pathlib.Path("/dev/shm").is_dir(), reason="this machine has no /dev/shm"
)


@pytest.fixture
def key(tmp_path):
  write_key(tmp_path / "key")
  return tmp_path / "key"


@pytest.fixture
def service(tmp_path, key):
  service = Workplace(tmp_path).open(keys={KEY: {"file": str(key)}})
  yield service
  shutil.rmtree(service.private.memory, ignore_errors=True)


@pytest.fixture
def browser(service):
  with Browser(service) as browser:
    yield browser


@pytest.fixture
def job(service):
  """A job that has ended, with a log and metrics."""
  body = pipeline(encryptionSpec={"kmsKeyName": KEY})
  job = service.create("pipelineJobs", "my-project", "europe-west4", body)
  service.private.prepare(job)
  folder = service.working_folder(job)
  with SealedJob(folder, service.folder(job), service.private.key_of(job)).kept():
    (folder / "model").mkdir()
    write_text(folder / "model" / "metrics.jsonl", '{"step": 3, "train_total_loss": 0.125}\n')
    write_text(folder / "worker.log", "a secret line\n")
  service.store.change(job.name, ("QUEUED",), state="CANCELLED")
  return job


def test_its_page_has_log_and_metrics(browser, job):
  text = browser.get(f"/console/{job.name}").text
  assert "a secret line" in text
  assert "0.125" in text
  assert browser.get(f"/console/{job.name}:log").text == "a secret line\n"


def test_without_its_key_the_page_says_so(browser, job, key):
  key.unlink()
  page = browser.get(f"/console/{job.name}")
  assert page.status_code == 200
  assert "its file cannot be read" in page.text
  assert "a secret line" not in page.text
  assert browser.get(f"/console/{job.name}:state").status_code == 200
  page = browser.get(f"/console/{job.name}:log")
  assert page.status_code == 400
  assert "its file cannot be read" in page.text


def test_a_clone_is_encrypted_too(browser, service, job):
  browser.get(CREATE, params={"like": job.name})
  assert browser.form("/create")["values"][KEY_FIELD] == KEY
  for _ in range(5):
    browser.send("/create")
  assert f"<dd>{KEY}</dd>" in browser.page.text
  page = browser.send("/create", {"go": "create"})
  created = service.get(page.url.path.removeprefix("/console/"))
  assert created.plan["key"]["name"] == KEY
  assert created.name != job.name


def test_a_key_that_is_none_is_said(browser, service, job):
  browser.get(CREATE, params={"like": job.name})
  for _ in range(4):
    browser.send("/create")
  page = browser.send("/create", {KEY_FIELD: KEY + "2", "go": "create"})
  assert page.status_code == 400
  assert "Encrypt the job with a key the key" in page.text
  assert "is not configured here for my-project" in page.text
