"""The form for a new distillation, from the upload to the job."""

import html
import io
import json
import re

import pytest

from dss_jax.console.wizard_values import values_of
from dss_jax.data.records import read_rows
from tests.console.conftest import TOKENS
from tests.console.plain_browser import Browser
from tests.e2e.conftest import sums
from tests.jobs.workplace import Workplace, pipeline

CREATE = "projects/my-project/create"
GOOD = "".join(json.dumps(row) + "\n" for row in sums(1, 40)).encode()


def begin(browser):
  browser.get(CREATE)
  return browser.send("/create", {"model_display_name": "Sums", "location": "europe-west4"})


def upload(browser, content=GOOD, name="train.jsonl", field="dataset_file"):
  return browser.send("/create", {"go": "next"}, files={field: (name, io.BytesIO(content))})


def step_of(page):
  return re.search(r'name="step" value="(\w+)"', page.text)[1]


def text_of(page):
  return " ".join(html.unescape(re.sub("<[^>]*>", " ", page.text)).split())


def errors(page):
  found = re.findall(r'<p class="error" id="([\w]+)-error">.*?</span>(.*?)</p>', page.text)
  return {name: html.unescape(message) for name, message in found}


def test_from_the_upload_to_the_job(browser, service):
  assert step_of(begin(browser)) == "dataset"
  page = upload(browser)
  # The report is shown at once.
  assert (page.status_code, step_of(page)) == (200, "dataset")
  text = text_of(page)
  assert "Rows 40 With a label 40 With a rationale 40 Duplicates" in text
  assert "train.jsonl" in text
  assert "40 rows to train on: 100 or more are advised" in text
  assert step_of(browser.send("/create")) == "evaluation"
  page = browser.send("/create", {"evaluation_kind": "split", "split_percent": "25"})
  assert step_of(page) == "advanced"
  page = browser.send("/create", {"train_steps": "12", "temperature": "0.5"})
  assert step_of(page) == "summary"
  text = text_of(page)
  for part in (
    "25 % of the labelled inputs", "12 steps", "Requests 0", "the answers are recorded",
    "not known: no such job has run here yet", "no other job of this accelerator type",
  ):  # fmt: skip
    assert part in text
  page = browser.send("/create", {"go": "create"})
  assert page.status_code == 200
  job = service.get(str(page.url.path).removeprefix("/console/"))
  given = job.request["runtimeConfig"]["parameterValues"]
  assert (given["train_steps"], given["temperature"], job.user) == (12, 0.5, "local")
  assert (job.location, job.display_name, job.state) == ("europe-west4", "Sums", "QUEUED")
  train, evaluation = (
    list(read_rows(service.resolve(given[name], name, "my-project")))
    for name in ("dataset_uri", "evaluation_data_uri")
  )
  inputs = [{row["input_text"] for row in rows} for rows in (train, evaluation)]
  assert len(train) + len(evaluation) == 40
  assert len(inputs[1]) == round(len(inputs[0] | inputs[1]) / 4)
  assert not inputs[0] & inputs[1]
  service.cancel(job.name)


def test_all_errors_come_at_once_beside_their_fields(browser):
  browser.get(CREATE)
  page = browser.send(
    "/create",
    {
      "model_display_name": "",
      "location": "Mars!",
      "student_model_reference": "<script>x</script>",
    },
  )
  assert (page.status_code, step_of(page)) == (400, "model")
  found = errors(page)
  assert set(found) == {"model_display_name", "location", "student_model_reference"}
  assert found["model_display_name"].startswith("Name of the new model is ''")
  assert "such as us-central1" in found["location"]
  assert "the operator has not configured" in found["student_model_reference"]
  assert "<script>x" not in page.text
  # What was typed is still there.
  assert browser.form("/create")["values"]["location"] == "Mars!"


def test_numbers_are_checked_as_the_api_does(browser):
  begin(browser)
  browser.send("/create", {"dataset_uri": "gs://my-bucket/train.jsonl"})
  browser.send("/create")
  assert step_of(browser.send("/create")) == "advanced"
  page = browser.send(
    "/create",
    {"train_steps": "many", "learning_rate_multiplier": "nan", "temperature": "2",
     "max_context_length": "9k"},
  )  # fmt: skip
  assert (page.status_code, step_of(page)) == (400, "advanced")
  assert errors(page) == {
    "train_steps": "Training steps is 'many', but must be a whole number from 1 to 1,000,000",
    "learning_rate_multiplier": "Learning rate multiplier is nan, but must be a number from 1e-06"
    " to 1e+06",
    "temperature": "Temperature of the teacher is 2.0, but must be a number from 0 to 1",
    "max_context_length": "Longest input is '9k', but must be one of 8k, 32k",
  }
  values = browser.form("/create")["values"]
  assert (values["train_steps"], values["temperature"]) == ("many", "2")


def test_a_mistake_in_an_earlier_step_leads_back(browser):
  begin(browser)
  page = browser.send("/create", {"teacher_model_reference": "gone@1", "dataset_uri": "x"})
  assert (page.status_code, step_of(page)) == (400, "model")


def test_a_bad_file_is_not_kept(browser, service):
  begin(browser)
  before = service.uploads.list("my-project")
  content = GOOD + b'{"input_text": 7}\nnot <script>json</script>\n'
  page = upload(browser, content, "<img src=x>.jsonl")
  assert (page.status_code, step_of(page)) == (400, "dataset")
  text = text_of(page)
  assert "Line 41:" in text
  assert "Line 42:" in text
  assert "<script>json" not in page.text
  assert service.uploads.list("my-project") == before


@pytest.mark.parametrize(
  ("content", "says"),
  [
    (b"", "the file is empty"),
    (b"\x1f\x8b\x08\x00zipped", "the file is compressed"),
    (b"\x89PNG\r\n\x1a\n\x00\x00", "Line 1"),
    (b"[1, 2]\n", "Line 1"),
    (b"\n", "no rows"),
  ],
)
def test_files_that_are_no_rows(browser, service, content, says):
  begin(browser)
  before = service.uploads.list("my-project")
  page = upload(browser, content)
  assert page.status_code == 400
  assert says in text_of(page)
  assert service.uploads.list("my-project") == before


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "..\\x", "a\0b", "x" * 999])
def test_a_name_is_never_a_path(browser, service, name):
  begin(browser)
  page = upload(browser, GOOD, name)
  assert page.status_code == 200
  newest = service.uploads.list("my-project")[0]
  assert "/" not in newest.name
  assert "\\x" not in newest.name.replace("\\x00", "")
  assert len(newest.name) <= 123
  folder = service.root / "uploads" / "my-project" / newest.id
  assert sorted(path.name for path in folder.iterdir()) == ["rows.jsonl", "upload.json"]


def test_a_file_that_is_too_large(browser, service, monkeypatch):
  begin(browser)
  monkeypatch.setattr(service.uploads, "max_bytes", 100)
  page = upload(browser)
  assert page.status_code == 400
  assert "the file has more than 100 bytes" in text_of(page)
  assert not list((service.root / "uploads" / "my-project").glob(".*"))


@pytest.mark.parametrize(
  ("uri", "says"),
  [
    ("gs://other/train.jsonl", "the bucket 'other' is not configured here"),
    ("gs://my-bucket/../secret/train.jsonl", "a part of the path is '..'"),
    ("/etc/passwd", "is outside the folders"),
    ("upload://../../secret", "is no upload of this server"),
    ("upload://" + "0" * 24, "where there is no file"),
    ("https://example.com/x", "https:// is not read here"),
    ("", "Training data is required"),
  ],
)
def test_data_that_a_job_may_not_read(browser, uri, says):
  begin(browser)
  page = browser.send("/create", {"dataset_uri": uri})
  assert (page.status_code, step_of(page)) == (400, "dataset")
  assert says in errors(page)["dataset_uri"]


def test_the_upload_of_another_project_is_not_there(browser, service):
  other = service.uploads.add("other-project", "x.jsonl", io.BytesIO(GOOD), "somebody")
  begin(browser)
  page = browser.send("/create", {"dataset_uri": other.uri})
  assert "where there is no file" in errors(page)["dataset_uri"]


def test_own_evaluation_data(browser):
  begin(browser)
  browser.send("/create", {"dataset_uri": "gs://my-bucket/train.jsonl"})
  assert step_of(browser.send("/create")) == "evaluation"
  page = browser.send("/create", {"evaluation_kind": "own"})
  assert errors(page)["evaluation_data_uri"].startswith("Give evaluation data")
  page = upload(browser, GOOD, "eval.jsonl", "evaluation_file")
  assert step_of(page) == "evaluation"
  assert "Evaluation: eval.jsonl Rows 40" in text_of(page)
  # The training rows are among them.
  assert "of the evaluation data also in the training data" in text_of(page)
  assert step_of(browser.send("/create")) == "advanced"


@pytest.mark.parametrize("percent", ["0", "51", "some", "nan"])
def test_a_share_that_cannot_be(browser, percent):
  begin(browser)
  browser.send("/create", {"dataset_uri": "gs://my-bucket/labelled.jsonl"})
  browser.send("/create")
  page = browser.send("/create", {"evaluation_kind": "split", "split_percent": percent})
  assert "must be a number from 1 to 50" in errors(page)["split_percent"]


def test_a_share_of_data_without_labels(browser):
  begin(browser)
  browser.send("/create", {"dataset_uri": "gs://my-bucket/train.jsonl"})
  browser.send("/create")
  browser.send("/create", {"evaluation_kind": "split"})
  assert step_of(browser.send("/create")) == "summary"
  page = browser.send("/create", {"go": "create"})
  assert "0 inputs have a label" in errors(page)["split_percent"]


def test_steps_back_keep_the_values(browser):
  begin(browser)
  page = browser.send("/create", {"dataset_uri": "not checked yet", "go": "back"})
  assert (page.status_code, step_of(page)) == (200, "model")
  assert browser.form("/create")["values"]["model_display_name"] == "Sums"
  page = browser.send("/create")
  assert browser.form("/create")["values"]["dataset_uri"] == "not checked yet"


def test_a_checkbox_that_is_off_stays_off(browser):
  begin(browser)
  browser.send("/create", {"dataset_uri": "gs://my-bucket/train.jsonl"})
  browser.send("/create")
  page = browser.send("/create", without=["enable_early_stopping"])
  assert step_of(page) == "advanced"
  assert browser.form("/create")["values"]["enable_early_stopping"] == ""
  browser.send("/create", {"go": "evaluation"})
  assert "enable_early_stopping" not in browser.form("/create")["values"]


def test_a_clone_has_the_values_of_its_job(browser, service):
  begin(browser)
  browser.send("/create", {"dataset_uri": "gs://my-bucket/train.jsonl"})
  browser.send("/create")
  browser.send("/create", without=["enable_early_stopping"])
  browser.send("/create", {"train_steps": "7"})
  name = browser.send("/create", {"go": "create"}).url.path.removeprefix("/console/")
  values = values_of(service.get(name))
  browser.get(CREATE, params={"like": name})
  shown = browser.form("/create")["values"]
  assert {key: shown[key] for key in values if key in shown} == {
    key: value for key, value in values.items() if key in shown
  }
  assert (shown["train_steps"], shown["enable_early_stopping"]) == ("7", "")
  service.cancel(name)


def test_a_clone_of_the_deprecated_form(browser, service):
  runtime = {"parameterValues": {}, "parameters": {
    "dataset_uri": {"stringValue": "gs://my-bucket/train.jsonl"},
    "project": {"stringValue": "my-project"},
    "accelerator_type": {"stringValue": "TPU"},
    "train_steps": {"intValue": "9"},
  }}  # fmt: skip
  job = service.prepare(
    "pipelineJobs", "my-project", "europe-west4", pipeline(runtimeConfig=runtime)
  )
  values = values_of(job)
  assert (values["dataset_uri"], values["train_steps"]) == ("gs://my-bucket/train.jsonl", "9")
  assert values["location"] == "europe-west4"


def test_what_keeps_the_teacher_from_working_is_said(tmp_path):
  workplace = Workplace(tmp_path)
  teacher = {**workplace.settings["teachers"]["text-unicorn@001"], "settings": {"prompt": "gone"}}
  with Browser(workplace.open(teachers={"text-unicorn@001": teacher})) as browser:
    begin(browser)
    browser.send("/create", {"dataset_uri": "gs://my-bucket/train.jsonl"})
    browser.send("/create")
    browser.send("/create")
    page = browser.send("/create")
    assert (page.status_code, step_of(page)) == (400, "summary")
    assert "gone" in text_of(page)


def test_a_clone_of_another_project_is_refused(browser, service):
  page = browser.get(CREATE, params={"like": "projects/other-project/locations/l/pipelineJobs/x"})
  assert page.status_code == 404


def test_a_viewer_may_not_create(guarded, service):
  guarded.sign_in(TOKENS["viewer"][0])
  jobs = guarded.get("projects/my-project/jobs")
  assert "New distillation" not in jobs.text
  token = guarded.form_token
  assert guarded.get(CREATE).status_code == 403
  page = guarded.post(f"/console/{CREATE}", {"form_token": token, "go": "create"})
  assert page.status_code == 403
