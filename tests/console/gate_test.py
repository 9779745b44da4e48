"""Who may use the console: hosts, origins, sessions, roles, and the log of requests."""

import json

import pytest
from starlette.routing import Mount, Route

from dss_jax.console.app import routes
from dss_jax.console.session import Sessions, read_key
from tests.console.conftest import TOKENS
from tests.console.plain_browser import HOST

JOBS = "/console/projects/my-project/jobs"


def test_pages_have_strict_headers(browser):
  for path in (JOBS, "/console/nothing", "/console/static/console.css"):
    headers = browser.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"


def test_pages_have_nothing_inline(browser):
  text = browser.get(JOBS).text
  assert "<style" not in text
  assert " style=" not in text
  assert " on" not in {part[:3] for part in text.split("=")}
  assert "<script>" not in text


def test_the_start_leads_to_the_console(browser):
  assert browser.get("/").url.path == "/console/"
  assert browser.get("/console").url.path == "/console/"


def test_other_hosts_are_refused_without_tokens(browser):
  page = browser.get(JOBS, headers={"host": "evil.example"})
  assert page.status_code == 403
  assert "only clients of this machine" in page.text


def test_a_cookie_is_strict(guarded):
  guarded.get("sign-in")
  page = guarded.client.post(
    "/console/sign-in",
    data={"token": TOKENS["viewer"][0], "form_token": guarded.form_token},
    headers={"origin": HOST},
    follow_redirects=False,
  )
  cookie = page.headers["set-cookie"]
  for part in ("HttpOnly", "SameSite=strict", "Path=/console", "Max-Age=43200"):
    assert part in cookie
  assert TOKENS["viewer"][0] not in cookie


def test_signing_in_leads_to_the_page_that_was_asked(guarded):
  assert guarded.get(JOBS).url.path == "/console/sign-in"
  page = guarded.send("sign-in", {"token": TOKENS["viewer"][0]})
  assert page.url.path == JOBS
  assert "viewer" in page.text


def test_signing_in_begins_another_session(guarded):
  guarded.get("sign-in")
  before = guarded.form_token
  guarded.send("sign-in", {"token": TOKENS["viewer"][0]})
  assert guarded.form_token != before


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example", "/console/\\evil"])
def test_signing_in_leads_nowhere_else(guarded, target):
  guarded.get("sign-in", params={"next": target})
  page = guarded.send("sign-in", {"token": TOKENS["viewer"][0]})
  assert str(page.url).startswith(f"{HOST}/console/projects/")


def test_a_wrong_token_is_refused(guarded):
  page = guarded.sign_in("<script>alert(1)</script>")
  assert page.status_code == 401
  assert "not a token of this server" in page.text
  assert "<script>alert" not in page.text
  assert guarded.get(JOBS).url.path == "/console/sign-in"


def test_signing_out_ends_the_session(guarded):
  guarded.sign_in(TOKENS["viewer"][0])
  assert guarded.get(JOBS).url.path == JOBS
  (copied,) = guarded.client.cookies.items()
  guarded.send("sign-out")
  assert guarded.get(JOBS).url.path == "/console/sign-in"
  guarded.client.cookies.clear()
  guarded.client.cookies.set(*copied, domain="127.0.0.1", path="/console")
  assert guarded.get(JOBS).url.path == "/console/sign-in"


@pytest.mark.parametrize("cookie", ["forged", "WyJhIiwiYiJd.aaaaaa.forged"])
def test_a_forged_cookie_is_no_session(guarded, service, cookie):
  name = Sessions(read_key(service.root)).cookie
  guarded.client.cookies.set(name, cookie, domain="127.0.0.1", path="/console")
  assert guarded.get(JOBS).url.path == "/console/sign-in"


def test_htmx_is_sent_to_the_sign_in(guarded):
  page = guarded.get(JOBS, headers={"hx-request": "true"})
  assert (page.status_code, page.headers["hx-redirect"]) == (401, "/console/sign-in")


def test_a_session_does_not_open_the_api(guarded):
  guarded.sign_in(TOKENS["admin"][0])
  page = guarded.get("/v1/projects/my-project/locations/us-central1/pipelineJobs")
  assert page.status_code == 401


def test_other_projects_are_not_known(guarded):
  guarded.sign_in(TOKENS["stranger"][0])
  assert guarded.get(JOBS).status_code == 403
  assert "my-project" not in guarded.get("/console/").text
  # As a project that does not exist.
  assert guarded.get("/console/projects/nope/jobs").status_code == 403


def test_another_origin_is_refused(browser):
  browser.get(JOBS)
  for origin in ("http://evil.example", "null", f"{HOST}:1", "file://127.0.0.1"):
    page = browser.post("/console/sign-out", headers={"origin": origin})
    assert (page.status_code, "another site" in page.text) == (403, True)
    assert browser.get(JOBS, headers={"origin": origin}).status_code == 403


def test_a_post_without_an_origin_is_refused(browser):
  page = browser.client.post("/console/sign-out")
  assert (page.status_code, "another site" in page.text) == (403, True)


def actions(service, access):
  """The path of every form of the console, with values for its parameters."""
  (console,) = (each for each in routes(service, access) if isinstance(each, Mount))
  values = {"project": "my-project", "location": "us-central1", "kind": "pipelineJobs"}
  for route in console.app._app.routes:
    if isinstance(route, Route) and "POST" in route.methods:
      given = {name: values.get(name, "1") for name in route.param_convertors}
      yield "/console" + str(route.url_path_for(route.name, **given))


def test_every_form_needs_its_token(browser, service, access):
  found = list(actions(service, access))
  assert f"{HOST}/console/sign-out".endswith(found[1])
  for path in found:
    browser.get(JOBS)
    for values in ({}, {"form_token": "0" * 64}, {"form_token": "é"}):
      page = browser.post(path, values)
      assert (page.status_code, "not of your session" in page.text) == (403, True), path


def test_the_token_of_another_session_is_refused(guarded, browser):
  guarded.get("sign-in")
  foreign = guarded.form_token
  browser.get("/console/")
  assert browser.post("/console/sign-out", {"form_token": foreign}).status_code == 403


def test_too_large_a_form_is_refused(browser):
  browser.get(JOBS)
  page = browser.post("/console/sign-out", {"x": "y" * 2**20})
  assert page.status_code == 413


def test_a_failure_of_the_program_says_nothing_of_it(browser, service, monkeypatch):
  monkeypatch.setattr(type(service), "of_parent", lambda *arguments: 1 / 0)
  page = browser.get(JOBS)
  assert (page.status_code, "the server failed; its log says why" in page.text) == (500, True)
  assert "ZeroDivision" not in page.text
  assert "style-src 'self'" in page.headers["content-security-policy"]
  last = json.loads((service.root / "audit.jsonl").read_text().splitlines()[-1])
  assert last["status"] == 500


def test_requests_are_logged(guarded, service):
  guarded.sign_in(TOKENS["editor"][0])
  guarded.get(JOBS)
  lines = (service.root / "audit.jsonl").read_text().splitlines()
  last = json.loads(lines[-1])
  assert (last["caller"], last["method"], last["resource"], last["status"]) == (
    "editor", "GET", JOBS, 200,
  )  # fmt: skip
  assert not any(TOKENS["editor"][0] in line for line in lines)
