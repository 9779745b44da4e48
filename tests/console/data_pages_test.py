"""The pages of uploads."""

import io

import pytest

from dss_jax.jobs.api.access import Access
from tests.console.conftest import TOKENS
from tests.console.plain_browser import Browser
from tests.jobs.workplace import pipeline

DATA = "projects/my-project/data"
GOOD = b'{"input_text": "Is it <b>so</b>?", "output_text": "<script>alert(1)</script>"}\n' * 6


def upload(browser, content=GOOD, name="rows.jsonl"):
  browser.get(DATA)
  return browser.send("/data", files={"file": (name, io.BytesIO(content))})


def test_an_upload_and_what_is_in_it(browser):
  page = upload(browser, name='"><script>alert(2)</script>.jsonl')
  assert page.url.path.startswith(f"/console/{DATA}/")
  assert "<script>alert" not in page.text
  assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
  assert "<dt>Rows</dt><dd>6</dd>" in page.text
  listed = browser.get(DATA).text
  assert "<script>alert" not in listed
  assert "script&gt;.jsonl" in listed


def test_bad_lines_are_named_by_the_page(browser, service):
  page = upload(browser, GOOD + b"no json\n")
  assert "These data cannot be used" in page.text
  assert "rows.jsonl, line 7" in page.text
  assert "Train on it" not in page.text


def test_nothing_chosen(browser):
  browser.get(DATA)
  page = browser.send("/data", {})
  assert (page.status_code, "Choose a file first." in page.text) == (400, True)
  assert "the file is empty" in upload(browser, b"").text


def test_too_large_a_request_is_refused_before_it_is_read(service, monkeypatch):
  monkeypatch.setattr(service.uploads, "max_bytes", 1000)
  with Browser(service) as small:
    page = upload(small, b"x" * (2**20 + 2000))
    assert page.status_code == 413
    # A request that does not say its length is cut while it is read.
    small.get(DATA)
    head = "--b\r\ncontent-disposition: form-data; name="
    body = f'{head}form_token\r\n\r\n{small.form_token}\r\n{head}file; filename="x"\r\n\r\n'
    page = small.client.post(
      f"/console/{DATA}",
      content=iter([body.encode(), *[b"x" * 2**16] * 20, b"\r\n--b--\r\n"]),
      headers={"origin": "http://127.0.0.1", "content-type": "multipart/form-data; boundary=b"},
    )
    assert page.status_code == 413
  assert not [each for each in service.uploads.list("my-project") if each.size_bytes > 2**20]


def test_deleting_needs_the_role(service, access):
  with Browser(service, access) as guarded:
    guarded.sign_in(TOKENS["editor"][0])
    path = upload(guarded).url.path
    assert ":delete" not in guarded.page.text
    token = guarded.form_token
    assert guarded.post(path + ":delete", {"form_token": token}).status_code == 403
    guarded.send("sign-out")
    guarded.sign_in(TOKENS["viewer"][0])
    assert guarded.get(path).status_code == 200
    assert guarded.forms()[0]["action"] == "/console/sign-out"
    assert len(guarded.forms()) == 1
    guarded.send("sign-out")
    guarded.sign_in(TOKENS["admin"][0])
    guarded.get(path)
    assert guarded.send(":delete").url.path == f"/console/{DATA}"
    assert guarded.get(path).status_code == 404


@pytest.mark.parametrize("own", ["..", "%2e%2e", "0" * 24, "..%2f..%2ftokens"])
def test_ids_that_are_none(browser, own):
  assert browser.get(f"{DATA}/{own}").status_code == 404


def test_what_a_job_reads_stays(service):
  stored = service.uploads.add("my-project", "x.jsonl", io.BytesIO(GOOD), "me")
  job = service.create(
    "pipelineJobs", "my-project", "europe-west4", pipeline({"dataset_uri": stored.uri})
  )
  with Browser(service, Access()) as browser:
    path = f"/console/{DATA}/{stored.id}"
    browser.get(path)
    page = browser.send(":delete")
    assert (page.status_code, "a job reads it" in page.text) == (400, True)
    service.cancel(job.name)
    browser.get(path)
    assert browser.send(":delete").status_code == 200
