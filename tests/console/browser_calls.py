"""What a person does in the console, in Chromium; prints what was seen as JSON.

Run by the Python of an environment with playwright and axe-core-python: browser_test.py.
"""

import json
import time

from chromium import (
  ADDRESS,
  CHROMIUM,
  GIVEN,
  MODES,
  PROJECT,
  found,
  look,
  open_page,
  sign_in,
)
from playwright.sync_api import sync_playwright

ROWS = GIVEN
_JOB_SECONDS = 300
# Of a wrong form, and of a page that is not there.
_EXPECTED = ("400 (Bad Request)", "404 (Not Found)")


def go_on(page):
  with page.expect_navigation():
    page.get_by_role("button", name="Continue").last.click()


def heading(page):
  return page.locator("main h2").first.inner_text()


def through_the_wizard(page, seen, steps):
  """Goes from the first step to the summary; calls `seen` with the name of each page."""
  page.goto(f"{PROJECT}/create")
  go_on(page)
  seen("model-errors")
  page.get_by_label("Name of the new model").fill("Sums")
  seen("model")
  go_on(page)
  page.get_by_label("Upload a file").set_input_files(ROWS)
  go_on(page)
  seen("dataset")
  go_on(page)
  page.get_by_label("A share of the training data").check()
  page.get_by_label("Steps between evaluations").fill("20")
  seen("evaluation")
  go_on(page)
  page.get_by_label("Training steps").fill(str(steps))
  seen("advanced")
  go_on(page)
  seen("summary")


def create(page):
  page.get_by_role("button", name="Create the job").last.click()
  page.wait_for_url("**/pipelineJobs/*")


def watch(page):
  """Returns the steps that the page showed while the job ran, and its last state."""
  steps, state, end = [], "", time.monotonic() + _JOB_SECONDS
  cell = page.locator('td[data-step="train_total_loss"]')
  while state not in ("Succeeded", "Failed") and time.monotonic() < end:
    state = page.locator("#state").inner_text()
    shown = cell.inner_text().replace(",", "")
    if shown.isdecimal() and int(shown) not in steps:
      steps.append(int(shown))
    page.wait_for_timeout(100)
  return steps, state


def drawn(page):
  """Returns how many of the canvases have something on them."""
  page.locator(".plot canvas").nth(2).wait_for()
  page.wait_for_timeout(300)
  return page.evaluate(
    """Array.from(document.querySelectorAll('.plot canvas')).filter(canvas => {
      const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      return data.some(value => value);
    }).length"""
  )


def keyboard(page):
  """Returns whether a person without a mouse gets through the first step."""
  page.goto(f"{PROJECT}/create")
  page.keyboard.press("Tab")
  first = page.evaluate("document.activeElement.textContent")
  page.keyboard.press("Enter")
  is_in_main = page.evaluate("location.hash") == "#main"
  page.get_by_label("Name of the new model").focus()
  page.keyboard.type("Typed")
  with page.expect_navigation():
    page.keyboard.press("Enter")
  return [first, is_in_main, heading(page)]


with sync_playwright() as playwright:
  browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

  page = open_page(browser, expected=_EXPECTED, **MODES["desktop-light"])
  sign_in(page)
  through_the_wizard(page, lambda name: None, 150)
  create(page)
  steps, found["state"] = watch(page)
  found["steps grew"] = len(steps) > 2 and steps == sorted(steps)
  found["last step"] = steps[-1:]
  found["curves"] = drawn(page)
  job = page.url
  page.reload()
  found["curves of the ended job"] = drawn(page)
  found["log"] = "finished: trained for 150 steps" in page.locator("#log").inner_text()
  found["keyboard"] = keyboard(page)
  page.goto(job)
  page.get_by_role("link", name="Clone").click()
  found["clone"] = page.get_by_label("Name of the new model").input_value()

  page = open_page(browser, expected=_EXPECTED, java_script_enabled=False)
  sign_in(page)
  through_the_wizard(page, lambda name: None, 7)
  create(page)
  found["without scripts"] = page.locator("h1").inner_text()
  page.get_by_text("Cancel", exact=True).click()
  page.get_by_role("button", name="Cancel the job").click()
  page.goto(job)
  found["values without scripts"] = page.locator('td[data-step="train_total_loss"]').inner_text()

  for mode, options in MODES.items():
    page = open_page(browser, expected=_EXPECTED, **options)
    look(page, f"{mode}-sign-in")
    sign_in(page)
    through_the_wizard(page, lambda name, page=page, mode=mode: look(page, f"{mode}-{name}"), 20)
    for name, path in (
      ("jobs", f"{PROJECT}/jobs"),
      ("projects", f"{ADDRESS}/console/"),
      ("missing", f"{PROJECT}/nothing"),
      ("data", f"{PROJECT}/data"),
    ):
      page.goto(path)
      look(page, f"{mode}-{name}")
    page.locator("main table a").first.click()
    look(page, f"{mode}-upload")
    page.goto(job)
    drawn(page)
    look(page, f"{mode}-job")
    page.get_by_text("Delete", exact=True).click()
    look(page, f"{mode}-delete")
  browser.close()

print(json.dumps(found))
