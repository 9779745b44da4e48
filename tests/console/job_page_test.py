"""The page of a job: what it shows while the job runs and afterwards, and what can be done."""

import json

import pytest

from tests.console.conftest import TOKENS
from tests.jobs.workplace import pipeline

EVIL = "<script>alert('x')</script>"
LINES = [
  {
    "step": step,
    "train_total_loss": 6 - step / 1000,
    "train_num_predictions": 70.0,
    "train_fraction_of_correct_next_step_preds": float("nan") if step == 1 else 0.5,
    **({"eval_total_loss": 5.0} if step % 1000 == 0 else {}),
  }
  for step in range(1, 3001)
]


@pytest.fixture(scope="module")
def job(service):
  """A job that runs, with hostile texts wherever one can be."""
  body = pipeline(
    {"model_display_name": EVIL, "evaluation_data_uri": "gs://my-bucket/eval.jsonl"},
    displayName=EVIL,
    labels={"team": "x"},
  )
  job = service.create("pipelineJobs", "my-project", "europe-west4", body, user="somebody")
  folder = service.folder(job) / "model"
  folder.mkdir(parents=True)
  log = f"begin\n{EVIL}\n\x1b[31mred\u2028line\n{service.root}/secret\n"
  (service.folder(job) / "worker.log").write_text(log)
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
  service.store.change(job.name, ("QUEUED",), state="RUNNING", start_time=job.create_time)
  service.store.change_task(job.name, "validate", "RUNNING")
  service.store.change_task(
    job.name, "validate", "FAILED", error={"code": 3, "message": f"wrong {EVIL}"}
  )
  return service.get(job.name)


@pytest.fixture
def url(job):
  return f"/console/{job.name}"


def test_everything_is_escaped(browser, job, url):
  page = browser.get(url)
  assert page.status_code == 200
  assert "<script>alert" not in page.text
  # Title, heading, model, error, parameter and log.
  assert page.text.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") >= 5
  assert "<script>alert" not in browser.get("projects/my-project/jobs").text
  assert "<script>alert" not in browser.get(url + ":state").text
  browser.get("projects/my-project/create", params={"like": job.name})
  assert "<script>alert" not in browser.page.text
  assert EVIL in browser.form("/create")["values"]["model_display_name"]


def test_where_files_are_is_not_said(browser, service, url):
  page = browser.get(url)
  assert "ROOT/secret" in page.text
  assert str(service.root) not in page.text
  log = browser.get(url + ":log")
  assert log.headers["content-type"].startswith("text/plain")
  assert log.text == f"begin\n{EVIL}\n\\x1b[31mred\\u2028line\nROOT/secret\n"


def test_the_newest_values_are_in_the_page(browser, url):
  text = browser.get(url).text
  assert 'data-value="train_total_loss">3</td>' in text
  assert 'data-value="eval_total_loss">5</td>' in text
  assert 'data-step="train_total_loss">3,000</td>' in text
  assert '<progress id="progress" max="300" value="3000"' in text
  assert 'data-value="eval_num_predictions">–</td>' in text


def test_curves_are_thinned_and_keep_the_last_point(browser, service, job, url):
  found = browser.get(url + ":curves").json()
  steps, values = found["curves"]["train_total_loss"]
  assert len(steps) == len(values) == 1000
  assert (steps[-1], values[-1]) == (3000, 3.0)
  assert found["curves"]["eval_total_loss"] == [[1000, 2000, 3000], [5.0, 5.0, 5.0]]
  # What is no number of JSON is no point.
  assert 1 not in found["curves"]["train_fraction_of_correct_next_step_preds"][0]
  size = (service.folder(job) / "model" / "metrics.jsonl").stat().st_size
  assert found["place"] == size


def events(text):
  found = [dict(line.split(": ", 1) for line in part.splitlines()) for part in text.split("\n\n")
           if part]  # fmt: skip
  return [(each["event"], each["data"]) for each in found]


def test_the_stream_goes_on_where_the_page_was(browser, service, job, url):
  place = browser.get(url + ":curves").json()["place"]
  log = service.folder(job) / "worker.log"
  metrics = service.folder(job) / "model" / "metrics.jsonl"
  after = f"{log.stat().st_size}.{place}"
  with log.open("a") as file:
    file.write("one more\n")
  with metrics.open("a") as file:
    file.write(json.dumps({"step": 3001, "train_total_loss": 1.0}) + "\n")
  service.store.change(job.name, ("RUNNING",), state="FAILED", error={"code": 3, "message": EVIL})
  page = browser.get(url + ":watch", params={"after": after})
  assert page.headers["content-type"].startswith("text/event-stream")
  assert page.headers["content-security-policy"]
  kinds = events(page.text)
  assert kinds[0] == ("log", "one more")
  assert json.loads(kinds[1][1])["step"] == 3001
  assert json.loads(kinds[2][1])["state"] == "FAILED"
  assert len(kinds) == 3
  # Curves of an ended job stay.
  assert browser.get(url + ":curves").json()["curves"]["train_total_loss"][0][-1] == 3001
  assert "<script>alert" not in browser.get(url).text


def test_what_is_no_job(browser):
  parent = "projects/my-project/locations/europe-west4"
  for path in (f"{parent}/pipelineJobs/x", f"{parent}/models/x", f"{parent}/pipelineJobs/x:watch"):
    assert browser.get(path).status_code == 404
  assert browser.get("projects/my-project/locations/!/pipelineJobs/x").status_code == 400


@pytest.fixture
def waiting(service):
  return service.create("pipelineJobs", "my-project", "europe-west4", pipeline()).name


def test_cancelling_and_deleting(browser, service, waiting):
  browser.get(f"/console/{waiting}")
  assert not [form for form in browser.forms() if form["action"].endswith(":delete")]
  page = browser.send(":cancel")
  assert (page.url.path, service.get(waiting).state) == (f"/console/{waiting}", "CANCELLED")
  assert not [form for form in browser.forms() if form["action"].endswith(":cancel")]
  assert browser.send(":delete").url.path.endswith("/my-project/jobs")
  assert browser.get(f"/console/{waiting}").status_code == 404


def test_roles(guarded, service, waiting):
  url = f"/console/{waiting}"

  def shown():
    guarded.get(url)
    return {form["action"].rpartition(":")[2] for form in guarded.forms()} & {"cancel", "delete"}

  guarded.sign_in(TOKENS["viewer"][0])
  assert shown() == set()
  assert "Clone" not in guarded.page.text
  token = guarded.form_token
  for verb in ("cancel", "delete"):
    page = guarded.post(f"{url}:{verb}", {"form_token": token})
    assert (page.status_code, service.get(waiting).state) == (403, "QUEUED")
  guarded.get(url)
  guarded.send("sign-out")
  guarded.sign_in(TOKENS["editor"][0])
  assert shown() == {"cancel"}
  guarded.send(":cancel")
  assert shown() == set()
  token = guarded.form_token
  assert guarded.post(f"{url}:delete", {"form_token": token}).status_code == 403
  guarded.get(url)
  guarded.send("sign-out")
  guarded.sign_in(TOKENS["admin"][0])
  assert shown() == {"delete"}


def test_a_tuning_job_is_shown_too(browser, service):
  spec = {"trainingDatasetUri": "gs://my-bucket/labelled.jsonl"}
  body = {"baseModel": "t5-small", "supervisedTuningSpec": spec, "description": EVIL}
  job = service.create("tuningJobs", "my-project", "europe-west4", body)
  page = browser.get(f"/console/{job.name}")
  assert (page.status_code, "Tuning" in page.text) == (200, True)
  assert "Clone" not in page.text
  service.cancel(job.name)
