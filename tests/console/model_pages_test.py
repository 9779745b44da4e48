"""The pages of models: list, versions, aliases, lineage, the evaluation's report, deletion."""

import pytest

from dss_jax.jobs.names import Name
from dss_jax.jobs.queue.worker import EVALUATION_PAGE
from dss_jax.jobs.resources import Resources
from dss_jax.jobs.students.endpoints import Endpoints
from tests.console.conftest import TOKENS
from tests.jobs.api_server import fill
from tests.jobs.workplace import pipeline

MODELS = "/console/projects/my-project/models"
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def registry(service):
  return service.registry("my-project")


@pytest.fixture
def register(registry):
  """Registers a version of a model."""

  def register(name, **record):
    lineage = {
      "initial_checkpoint": "gs://t5",
      "teacher": "recorded:/tmp/x",
      "data_digest": "abc",
      "dataset": "/tmp/x",
    }
    metrics = {"eval_total_loss": 0.5, "label/eval_sequence_accuracy": 0.75}
    record = {"student": "small", "parameters": 7000, "step": 300, "metrics": metrics,
              "lineage": lineage, **record}  # fmt: skip
    return registry.register(name, record, fill)

  return register


def test_the_list(browser, register):
  register("sums")
  register("sums")
  register("signs")
  text = browser.get(MODELS).text
  assert f'href="{MODELS}/sums"' in text
  assert "0.75" in text
  assert f"{MODELS}/sums" not in browser.get(MODELS, params={"text": "SIGN"}).text
  assert "No model passes" in browser.get(MODELS, params={"text": '"\\'}).text


def test_a_model_and_its_versions(browser, register, registry):
  register("versions")
  register("versions")
  text = browser.get(f"{MODELS}/versions").text
  assert text.index("/versions@2") < text.index("/versions@1")
  for part in (
    "Where it comes from",
    "gs://t5",
    "7,000 weights",
    "eval_total_loss",
    "not deployed",
  ):
    assert part in browser.get(f"{MODELS}/versions@2").text
  assert browser.get(f"{MODELS}/nothing").status_code == 404
  assert browser.get(f"{MODELS}/versions@9").status_code == 404
  assert browser.get(f"{MODELS}/..%2f..").status_code == 404


def test_aliases_are_set_moved_and_removed(browser, register, registry):
  register("named")
  register("named")
  for number in (1, 2):
    browser.get(f"{MODELS}/named@{number}")
    page = browser.send(":mergeVersionAliases", {"alias": "prod"})
    assert page.url.path == f"{MODELS}/named@{number}"
    assert registry.version("named@prod").number == number
  form = next(form for form in browser.forms() if form["values"].get("alias") == "-prod")
  browser.post(form["action"], form["values"])
  assert "prod" not in registry.version("named@2").aliases
  browser.get(f"{MODELS}/named@2")
  page = browser.send(":mergeVersionAliases", {"alias": f"{EVIL}"})
  assert (page.status_code, "cannot be an alias" in page.text) == (400, True)
  assert EVIL not in page.text


def test_deleting_has_the_rules_of_the_api(browser, register, registry, service):
  one, _ = register("doomed"), register("doomed")
  endpoints = Endpoints(Resources(service.root), service.registry)
  name = Name("my-project", "europe-west4", "endpoints", "mine")
  endpoints.create(name, {"displayName": "My endpoint"})
  model = "projects/my-project/locations/europe-west4/models/doomed"
  endpoints.deploy(name, one, model=model, display_name="Deployed")
  browser.get(f"{MODELS}/doomed@1")
  assert "Deployed" in browser.page.text
  page = browser.send(":deleteVersion")
  assert (page.status_code, "uses it; undeploy it there first" in page.text) == (400, True)
  page = browser.send(":undeployModel")
  assert "It is not deployed" in page.text
  assert not endpoints.get(name)["deployedModels"]
  page = browser.send(":deleteVersion")
  # It is the default version.
  assert "the alias default means it" in page.text
  browser.get(f"{MODELS}/doomed@2")
  assert browser.send(":deleteVersion").url.path == f"{MODELS}/doomed"
  assert [version.number for version in registry.versions("doomed")] == [1]
  assert browser.send(":delete").url.path == MODELS
  assert "doomed" not in registry.names()


def test_an_endpoint_of_another_project_stays(browser, register):
  register("foreign")
  browser.get("projects/my-project/create")
  values = {
    "form_token": browser.form_token,
    "endpoint": "projects/other-project/locations/europe-west4/endpoints/1",
    "deployed": "1",
  }
  assert browser.post(f"{MODELS}/foreign@1:undeployModel", values).status_code == 403


def test_roles(guarded, register, registry):
  register("kept")
  register("kept")
  guarded.sign_in(TOKENS["viewer"][0])
  text = guarded.get(f"{MODELS}/kept@2").text
  assert "Set</button>" not in text
  assert "Delete" not in text
  given = {"form_token": guarded.form_token, "alias": "prod"}
  assert guarded.post(f"{MODELS}/kept@2:mergeVersionAliases", given).status_code == 403
  guarded.get("/console/projects/my-project/jobs")
  guarded.send("sign-out")
  guarded.sign_in(TOKENS["editor"][0])
  text = guarded.get(f"{MODELS}/kept@2").text
  assert "Set</button>" in text
  assert "Delete" not in text
  given = {"form_token": guarded.form_token}
  for verb in ("deleteVersion", "delete"):
    assert guarded.post(f"{MODELS}/kept@2:{verb}", given).status_code == 403
  assert len(registry.versions("kept")) == 2


@pytest.fixture
def made(service, register):
  """A job and the version that it made."""
  version = register("made", details=EVIL)
  job = service.create("pipelineJobs", "my-project", "europe-west4", pipeline(), job_id="made")
  result = {"model": "made", "version": version.number, "endpoint": "e", "location": "l",
            "student": "t5-small"}  # fmt: skip
  service.store.change(job.name, ("QUEUED",), state="SUCCEEDED", result=result)
  yield service.get(job.name)
  service.delete([job.name])


def test_a_version_says_what_it_was_made_from(browser, made):
  text = browser.get(f"{MODELS}/made@{made.result['version']}").text
  assert f'href="/console/{made.name}"' in text
  # As the request named them, not where they are on the server.
  assert "text-unicorn@001" in text
  assert "gs://my-bucket/train.jsonl" in text
  assert "/tmp/x" not in text


def test_the_report_is_a_page_of_no_site(browser, made, service):
  url = f"/console/{made.name}:report"
  assert browser.get(url).status_code == 404
  assert (
    "report of the evaluation" not in browser.get(f"{MODELS}/made@{made.result['version']}").text
  )
  version = f"{MODELS}/made@{made.result['version']}"
  folder = service.folder(made)
  folder.mkdir(parents=True)
  (folder / EVALUATION_PAGE).write_text(f"<script>1</script> of {service.root}/jobs")
  assert f'href="{url}"' in browser.get(version).text
  page = browser.get(url)
  assert page.text == "<script>1</script> of ROOT/jobs"
  policy = page.headers["content-security-policy"]
  assert policy.startswith("sandbox allow-scripts; default-src 'none';")
  assert "allow-same-origin" not in policy
  assert page.headers["x-frame-options"] == "DENY"
