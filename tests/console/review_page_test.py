"""The page of a job's rationales: what it shows, its forms without JavaScript, and htmx's parts."""

import html
import itertools

import pytest

from dss_jax.annotation.filters import CONCERNS as NOTED
from dss_jax.console.review_page import CONCERNS
from dss_jax.data.records import read_rows, write_rows
from dss_jax.jobs.api.reviews import Reviews, SentEdit
from tests.console.conftest import TOKENS
from tests.jobs.workplace import paused

NUMBERS = itertools.count()


@pytest.fixture
def job(service):
  return paused(service, f"review-{next(NUMBERS)}")


@pytest.fixture
def url(job):
  return f"/console/{job.name}"


def row_of(service, job, number):
  return Reviews(service).row(job, number)


def edit(browser, url, number, etag="0", *, query="", headers=None, **values):
  """Sends the form of a row as it was filled in."""
  browser.get("projects/my-project/create")
  given = {"form_token": browser.form_token, "row": str(number), "etag": etag, **values}
  return browser.post(f"{url}:editRationale{query}", given, headers=headers)


def test_concerns_come_first(browser, url):
  text = browser.get(f"{url}:rationales").text
  assert text.index('id="row-2"') < text.index('id="row-1"') < text.index('id="row-3"')
  assert "Does not mention its label" in text
  # Of the raw answers, nothing.
  assert "a secret of the teacher" not in text


def test_each_concern_has_its_words():
  assert CONCERNS.keys() == NOTED.keys()


def test_search_and_choice(browser, url, service, job):
  def rows(**query):
    text = browser.get(f"{url}:rationales", params=query).text
    return [number for number in range(1, 7) if f'id="row-{number}"' in text]

  assert rows(show="open") == [2]
  Reviews(service).edit(job.name, SentEdit(row=2, etag="0", rationale="Zebras."), "ann")
  assert (rows(show="open"), rows(show="edited"), rows(text="ZEBRAS")) == ([], [2], [2])
  assert "No row passes the filter" in browser.get(f"{url}:rationales?show=left-out").text
  assert rows(show="nothing like it") == [1, 2, 3, 4, 5, 6]
  assert rows(text='"\\ OR ') == []


def test_an_edit_leads_back_to_its_row(browser, url, service, job):
  row = row_of(service, job, 3)
  page = edit(browser, url, 3, query="?show=&text=", output_text=row["outputText"],
              rationale="One.\r\nTwo.")  # fmt: skip
  assert page.status_code == 200
  assert str(page.url).endswith(":rationales?show=&text=#row-3")
  edited = row_of(service, job, 3)
  assert edited["rationale"] == "One.\nTwo."
  assert edited["edits"][0]["user"] == "local"
  assert edited["outputText"] == row["outputText"]
  assert "Changed by local" in page.text
  assert "Before the edits" in page.text


def test_leaving_out_and_an_emptied_text(browser, url, service, job):
  row = row_of(service, job, 4)
  texts = {"output_text": row["outputText"], "rationale": row["rationale"]}
  edit(browser, url, 4, left_out="true", **texts)
  left = row_of(service, job, 4)
  assert (left["leftOut"], left["rationale"], left.get("annotated")) == (
    True, row["rationale"], None,
  )  # fmt: skip
  edit(browser, url, 4, "1", left_out="false", output_text=row["outputText"], rationale="  ")
  back = row_of(service, job, 4)
  assert (back["leftOut"], "rationale" in back) == (False, False)


def test_lines_that_a_browser_ends_otherwise_are_no_edit(browser, url, service, job):
  path = Reviews(service).path(job)
  rows = list(read_rows(path))
  rows[4]["rationale"] = "One.\r\nTwo.\n"
  write_rows(path, rows)
  label = rows[4]["output_text"]
  edit(browser, url, 5, left_out="true", output_text=label, rationale="One.\r\nTwo.\r\n")
  row = row_of(service, job, 5)
  assert (row["leftOut"], row["rationale"]) == (True, "One.\r\nTwo.\n")


def test_an_old_version_keeps_what_was_typed(browser, url, service, job):
  Reviews(service).edit(job.name, SentEdit(row=1, etag="0", rationale="Theirs <b>."), "ann")
  page = edit(browser, url, 1, output_text="9", rationale="Mine <i>.")
  assert page.status_code == 409
  for part in ("was edited since you read it, last by ann", "Mine <i>.", "Theirs <b>."):
    assert html.escape(part) in page.text
  # The form has the new version now, so that it can be sent again.
  form = next(each for each in browser.forms() if each["values"].get("row") == "1")
  assert form["values"]["etag"] == "1"
  assert row_of(service, job, 1)["rationale"] == "Theirs <b>."


def test_what_could_be_no_row_is_refused(browser, url, service, job):
  page = edit(browser, url, 2, output_text="", rationale="\u200b")
  assert page.status_code == 400
  assert "only invisible characters" in page.text
  assert row_of(service, job, 2)["etag"] == "0"
  assert edit(browser, url, 99, rationale="x").status_code == 404
  assert edit(browser, url, "x", rationale="x").status_code == 400


def test_htmx_gets_the_row_and_the_figures(browser, url):
  headers = {"hx-request": "true"}
  page = edit(browser, url, 5, headers=headers, output_text="1", rationale="So.")
  assert page.text.lstrip().startswith("<article")
  assert 'id="figures" hx-swap-oob="true"' in page.text
  page = edit(browser, url, 5, headers=headers, output_text="2", rationale="So.")
  assert (page.status_code, "was edited since" in page.text) == (200, True)


def test_everything_is_escaped(browser, service, url, job):
  path = Reviews(service).path(job)
  rows = list(read_rows(path))
  evil = "</textarea><script>alert(1)</script>{{ 'pwn' ~ 'ed' }}"
  rows[0].update(input_text=evil, output_text=evil, rationale=evil)
  rows[0]["provenance"].update(concerns=[evil], label=evil + "x")
  write_rows(path, rows)
  text = browser.get(f"{url}:rationales", params={"text": "alert"}).text
  assert "<script>alert" not in text
  assert "</textarea><" not in text
  assert "pwned" not in text
  assert "&lt;/textarea&gt;&lt;script&gt;" in text


def test_approval(browser, url, service, job):
  browser.get(f"{url}:rationales")
  page = browser.send(":approve")
  assert page.url.path == url
  assert service.get(job.name).state == "QUEUED"
  page = browser.get(f"{url}:rationales")
  assert "this one is queued" in page.text
  assert "<textarea" not in page.text
  page = edit(browser, url, 1, rationale="Late.")
  assert (page.status_code, "is QUEUED; rationales are edited" in page.text) == (400, True)


def test_the_page_of_a_paused_job_leads_here(browser, url):
  page = browser.get(url)
  assert "The job waits for a review" in page.text
  assert f'href="{url}:rationales"' in page.text
  assert "Paused" in browser.get("projects/my-project/jobs?state=PAUSED").text


def test_roles(guarded, url, service, job):
  guarded.sign_in(TOKENS["viewer"][0])
  page = guarded.get(f"{url}:rationales")
  assert "waits until an editor of the project" in page.text
  assert "<textarea" not in page.text
  given = {"form_token": guarded.form_token, "row": "1", "etag": "0", "rationale": "x"}
  assert guarded.post(f"{url}:editRationale", given).status_code == 403
  assert guarded.post(f"{url}:approve", given).status_code == 403
  assert service.get(job.name).state == "PAUSED"
  guarded.get(url)
  guarded.send("sign-out")
  guarded.sign_in(TOKENS["editor"][0])
  edit(guarded, url, 1, output_text="1", rationale="An editor's.")
  assert row_of(service, job, 1)["edits"][0]["user"] == "editor"


def test_jobs_without_rationales(browser, service):
  assert (
    browser.get("projects/my-project/locations/us-east1/pipelineJobs/no:rationales").status_code
    == 404
  )
