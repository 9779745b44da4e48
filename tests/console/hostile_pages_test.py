"""Nonsense in the forms of reviews, models and questions: a page says so, and nothing breaks."""

import random

import pytest

from tests.console.hostile_test import NASTY
from tests.console.plain_browser import Browser
from tests.jobs.api_server import fill
from tests.jobs.workplace import paused
from tests.serving.conftest import EchoStudent

PROJECT = "/console/projects/my-project"


@pytest.fixture(scope="module")
def asking(service):
  service.registry("my-project").register("sums", {"student": "small", "metrics": {}}, fill)
  with Browser(service, load=lambda version: EchoStudent()) as browser:
    yield browser


@pytest.fixture(scope="module")
def forms(service):
  """The paths of forms, with values that they take."""
  job = paused(service, "hostile")
  row = {"row": "1", "etag": "0", "output_text": "x", "rationale": "y", "left_out": "true"}
  asked = {"target": "model:sums@1", "prompt": "x", "explain": "true", "temperature": "0"}
  numbers = dict.fromkeys(("topK", "topP", "maxOutputTokens", "candidateCount", "seed"), "1")
  return {
    f"/console/{job.name}:editRationale": row,
    f"{PROJECT}/models/sums@1:mergeVersionAliases": {"alias": "prod"},
    f"{PROJECT}/models/sums@1:undeployModel": {
      "endpoint": "projects/my-project/locations/us-east1/endpoints/1", "deployed": "1",
    },
    f"{PROJECT}/try:predict": {**asked, **numbers},
  }  # fmt: skip


@pytest.mark.parametrize("number", range(4))
def test_forms_of_nonsense(asking, forms, number):
  path, values = list(forms.items())[number]
  asking.get(f"{PROJECT}/create")
  token = asking.form_token
  dice = random.Random(number)
  for turn in range(60):
    sent = {name: dice.choice([value, *NASTY]) for name, value in values.items()}
    # Also a form that lacks a field.
    sent.pop(dice.choice([*sent, "none"]), None)
    headers = {"hx-request": "true"} if turn % 2 else None
    page = asking.post(path, {**sent, "form_token": token}, headers=headers)
    assert page.status_code in (200, 400, 403, 404, 409), (sent, page.text)
    for evil in ("<script>alert", "xyzxyzxyz", "Traceback"):
      assert evil not in page.text


@pytest.mark.parametrize("text", NASTY)
def test_queries_of_nonsense(asking, forms, text):
  job = next(iter(forms)).partition(":")[0]
  for path in (f"{job}:rationales", f"{PROJECT}/models", f"{PROJECT}/try"):
    for name in ("text", "show", "page", "target"):
      page = asking.get(path, params={name: text})
      assert page.status_code in (200, 400), (path, name, text)
      assert "<script>alert" not in page.text
