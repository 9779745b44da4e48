"""The page to ask a student: its answer, its settings, and what goes wrong as a sentence."""

import html

import pytest

from dss_jax.console.try_page import DRIFT
from dss_jax.jobs.api.access import Access
from dss_jax.jobs.names import Name
from dss_jax.jobs.resources import Resources
from dss_jax.jobs.students.endpoints import Endpoints
from dss_jax.student.drift import KINDS
from tests.console.conftest import TOKENS
from tests.console.plain_browser import Browser
from tests.jobs.api_server import fill
from tests.serving.conftest import EchoStudent

TRY = "/console/projects/my-project/try"


@pytest.fixture(scope="module")
def student():
  return EchoStudent()


@pytest.fixture(scope="module")
def endpoint(service):
  """The name of an endpoint that a student answers at."""
  record = {"student": "small", "metrics": {}}
  version = service.registry("my-project").register("echo", record, fill)
  name = Name("my-project", "europe-west4", "endpoints", "echo")
  endpoints = Endpoints(Resources(service.root), service.registry)
  endpoints.create(name, {"displayName": "Echo"})
  model = "projects/my-project/locations/europe-west4/models/echo"
  endpoints.deploy(name, version, model=model)
  return str(name)


def load(student):
  def load(version):
    if student is None:
      raise ZeroDivisionError("no memory")
    return student

  return load


@pytest.fixture(scope="module")
def asking(service, student, endpoint):
  with Browser(service, load=load(student)) as browser:
    yield browser


def ask(browser, prompt="Add 1.", *, target="model:echo@1", headers=None, **values):
  browser.get(TRY)
  given = {"target": target, "prompt": prompt, **values}
  return browser.send("try:predict", given, headers=headers, without=[] if values else ["explain"])


def test_each_drift_has_its_sentence():
  assert DRIFT.keys() == set(KINDS)


def test_an_answer_with_its_rationale(asking):
  page = ask(asking, explain="true")
  assert page.status_code == 200
  assert "label of Add 1." in page.text
  assert "rationale of Add 1." in page.text
  # Four words at a log-probability of -0.5 each.
  assert "13.5 %" in page.text
  assert "echo@1 · " in page.text
  assert "unlike the training inputs" not in page.text
  # What was asked stays in the form.
  assert "Add 1.</textarea>" in page.text


def test_an_endpoint_answers(asking, endpoint):
  page = ask(asking, target=f"endpoint:{endpoint}")
  assert "label of Add 1." in page.text
  assert "rationale of" not in page.text
  assert f'value="endpoint:{endpoint}" selected' in page.text


def test_the_settings_are_the_apis(asking, student):
  page = ask(asking, temperature="0.5", topK="3", topP="0.9", candidateCount="2", seed="7",
             maxOutputTokens="2")  # fmt: skip
  assert "Answer 2" in page.text
  assert "cut off at the most tokens" in page.text
  question = student.questions[-1]
  decoding = question.decoding
  assert (decoding.temperature, decoding.top_k, decoding.top_p, decoding.num_candidates,
          decoding.seed, question.max_tokens) == (0.5, 3, 0.9, 2, 7, 2)  # fmt: skip


def test_drift_is_said(asking):
  assert "unlike the training inputs" in ask(asking, "odd one").text


def test_lines_arrive_as_in_the_training(asking, student):
  ask(asking, "one\r\ntwo ")
  assert student.questions[-1].text == "one\ntwo "


@pytest.mark.parametrize(
  ("values", "says"),
  [
    ({"prompt": " "}, "A prompt is empty"),
    ({"temperature": "hot"}, "Temperature is 'hot', but must be a number"),
    ({"temperature": "9"}, "Temperature: input should be less than or equal to 2"),
    ({"topP": "nan"}, "TopP: "),
    ({"candidateCount": "9"}, "CandidateCount: input should be less than or equal to 8"),
    ({"target": ""}, "Choose a student to ask"),
    ({"target": "model:none"}, "Models/none: does not exist here"),
    ({"target": "model:../echo"}, "cannot be a model"),
    ({"target": "endpoint:projects/other-project/locations/l1/endpoints/1"}, "another project"),
    ({"target": "endpoint:x"}, "must be a name like"),
  ],
)
def test_what_goes_wrong_is_a_sentence(values, says, asking):
  page = ask(asking, **values)
  assert page.status_code == 200
  assert html.escape(says) in page.text or says in html.unescape(page.text)
  assert "Traceback" not in page.text


def test_htmx_gets_the_answer_alone(asking):
  page = ask(asking, "<b>bold</b>", headers={"hx-request": "true"})
  assert "<html" not in page.text
  assert "label of &lt;b&gt;bold&lt;/b&gt;" in page.text


def test_a_student_that_cannot_be_loaded(service, endpoint):
  with Browser(service, load=load(None)) as browser:
    page = ask(browser)
  assert "No answer" in page.text or page.status_code == 500
  assert "no memory" not in page.text
  assert "Traceback" not in page.text


def test_viewers_may_ask_and_strangers_not(service, student, access, endpoint):
  with Browser(service, access, load=load(student)) as browser:
    browser.sign_in(TOKENS["viewer"][0])
    assert "label of Add 1." in ask(browser).text
    browser.send("sign-out")
    browser.sign_in(TOKENS["stranger"][0])
    assert browser.get(TRY).status_code == 403


def test_a_project_without_students(service, student):
  with Browser(service, Access(), load=load(student)) as browser:
    page = browser.get("projects/other-project/try")
  assert "There is no student yet" in page.text
