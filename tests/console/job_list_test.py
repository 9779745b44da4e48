"""The list of jobs."""

import dataclasses
import re

import pytest

from tests.console.plain_browser import Browser
from tests.jobs.workplace import Workplace, pipeline

JOBS = "projects/my-project/jobs"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
  """A console with 60 jobs, of which every third is cancelled."""
  service = Workplace(tmp_path_factory.mktemp("many")).open()
  job = service.prepare("pipelineJobs", "my-project", "us-central1", pipeline())
  for number in range(60):
    own = {"job_id": f"job-{number}", "display_name": f"Job <b>{number:02}</b>"}
    own |= {"name": f"{job.name}-{number}", "folder": f"{job.folder}-{number}"}
    moment = job.create_time.replace("Z", "")[:-2] + f"{number:02}Z"
    made = service.store.create(dataclasses.replace(job, **own, create_time=moment))
    if number % 3 == 0:
      service.cancel(made.name)
  with Browser(service) as browser:
    yield browser


def numbers(page):
  return [int(found) for found in re.findall(r"Job &lt;b&gt;(\d+)&lt;/b&gt;", page.text)]


def next_page(browser):
  found = re.search(r'href="([^"]*)">Next page', browser.page.text)
  return browser.get(found[1].replace("&amp;", "&")) if found else None


def test_pages_have_each_job_once(many):
  many.get(JOBS)
  seen, sizes = [], []
  while many.page is not None:
    seen += numbers(many.page)
    sizes.append(len(numbers(many.page)))
    if next_page(many) is None:
      break
  assert seen == list(range(60))[::-1]
  assert sizes == [25, 25, 10]
  assert "First page" in many.page.text


def test_filters(many):
  page = many.get(JOBS, params={"state": "CANCELLED"})
  assert numbers(page) == [number for number in range(59, -1, -1) if number % 3 == 0]
  page = many.get(JOBS, params={"name": "B>07", "state": "QUEUED"})
  assert numbers(page) == [7]
  # What was chosen stays chosen, also on the next page.
  assert '<option value="QUEUED" selected>' in page.text
  assert 'value="B&gt;07"' in page.text
  many.get(JOBS, params={"state": "QUEUED"})
  page = next_page(many)
  assert '<option value="QUEUED" selected>' in page.text
  assert not [number for number in numbers(page) if number % 3 == 0]
  assert "No job passes" in many.get(JOBS, params={"kind": "tuningJobs"}).text


@pytest.mark.parametrize("text", ['"', "\\", "a AND b", '" OR state="QUEUED', "é'x", "(", "%00"])
def test_a_name_is_only_searched(many, text):
  page = many.get(JOBS, params={"name": text})
  assert page.status_code == 200
  assert "No job passes" in page.text


def test_what_is_no_page(many):
  assert many.get(JOBS, params={"page": "x"}).status_code == 400
  assert many.get(JOBS, params={"state": "x"}).status_code == 200


def test_htmx_gets_the_rows_alone(many):
  page = many.get(JOBS, headers={"hx-request": "true", "hx-target": "rows"})
  assert "<html" not in page.text
  assert len(numbers(page)) == 25
