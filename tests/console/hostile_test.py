"""Whatever a browser sends, the console answers with a page, never with a failure of its own."""

import random
import urllib.parse

import pytest

from dss_jax.console.wizard_values import STEPS, defaults
from tests.console.plain_browser import HOST

NASTY = [
  "", " ", "\0", "\x1b[2J", "\u202e", "\ud7ff\uffff", "é" * 2000, "9" * 5000, "-1", "1e400", "nan",
  "../..", "/", "//", "gs://", "gs://my-bucket", "gs://my-bucket/", "upload://", "upload://x",
  "true", "[]", "{{ 'xyz' * 9 }}", "<script>alert(1)</script>", "' or 1=1 --", "%00", "projects/x",
  "projects/my-project/locations/l/models/nope@1", "file:///etc/passwd", "http://127.0.0.1/",
]  # fmt: skip


@pytest.mark.parametrize("step", [step.name for step in STEPS] + ["nope"])
def test_forms_of_nonsense(browser, step):
  dice = random.Random(step)
  browser.get("projects/my-project/create")
  token = browser.form_token
  names = [*defaults(), "go", "step", "unknown"]
  for _ in range(40):
    values = {name: dice.choice(NASTY) for name in dice.sample(names, dice.randrange(len(names)))}
    values = {"go": dice.choice(["next", "back", "create", "summary", "x"]), **values}
    page = browser.post(
      "/console/projects/my-project/create", {"step": step, **values, "form_token": token}
    )
    assert page.status_code in (200, 400, 403), (values, page.text)
    assert "<script>alert" not in page.text


@pytest.mark.parametrize("text", NASTY)
def test_paths_and_queries_of_nonsense(browser, text):
  for path in (
    "/console/projects/{}/jobs",
    "/console/projects/my-project/{}",
    "/console/projects/my-project/data/{}",
    "/console/projects/my-project/locations/{}/pipelineJobs/x",
    "/console/projects/my-project/locations/us-central1/{}/x",
    "/console/projects/my-project/locations/us-central1/pipelineJobs/{}",
    "/console/projects/my-project/locations/us-central1/pipelineJobs/{}:watch",
    "/console/static/{}",
  ):
    page = browser.get(path.format(urllib.parse.quote(text, safe=""))[:4000])
    assert page.status_code < 500, path
    assert "<script>alert" not in page.text
  for path, name in (
    ("jobs", "name"), ("jobs", "state"), ("jobs", "kind"), ("jobs", "page"), ("create", "like"),
    ("create", "data"),
  ):  # fmt: skip
    page = browser.get(f"projects/my-project/{path}", params={name: text})
    assert page.status_code < 500, (path, name)
    assert "<script>alert" not in page.text
    assert "xyz" * 9 not in page.text


@pytest.mark.parametrize(
  "body",
  [
    b"", b"--b", b"--b\r\n\r\n\r\n--b--", b"\xff" * 100,
    b'--b\r\ncontent-disposition: form-data; name="form_token"\r\n\r\nx\r\n--b--\r\n',
    b'--b\r\ncontent-disposition: form-data; filename="x"\r\n\r\nx\r\n--b--\r\n',
    b'--b\r\ncontent-disposition: form-data; name="a"; filename="x"\r\n\r\nx\r\n' * 3,
  ],
)  # fmt: skip
@pytest.mark.parametrize(
  "kind",
  ["multipart/form-data; boundary=b", "multipart/form-data", "multipart/form-data; charset=nope;"
   " boundary=b", "application/x-www-form-urlencoded", "application/json", ""],
)  # fmt: skip
def test_bodies_that_are_no_forms(browser, body, kind):
  browser.get("/console/")
  page = browser.client.post(
    "/console/projects/my-project/create",
    content=body,
    headers={"origin": HOST, "content-type": kind},
  )
  assert page.status_code in (400, 403)
