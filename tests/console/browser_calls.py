"""What a person does in the console, in Chromium; prints what was seen as JSON.

Run by the Python of an environment with playwright and axe-core-python: browser_test.py.
"""

import json
import pathlib
import sys
import time

import axe_core_python
from playwright.sync_api import sync_playwright

ADDRESS, TOKEN, CHROMIUM, ROWS, SHOTS = sys.argv[1:]
AXE = pathlib.Path(axe_core_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
PROJECT = f"{ADDRESS}/console/projects/my-project"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
MODES = {
  f"{device}-{scheme}": {"viewport": size, "color_scheme": scheme}
  for device, size in (("desktop", DESKTOP), ("phone", PHONE))
  for scheme in ("light", "dark")
}
_JOB_SECONDS = 300
found = {"console": [], "accessibility": [], "too wide": [], "looked at": []}


def open_page(browser, **options):
  """Returns a page that is signed in, whose errors are noted."""
  page = browser.new_context(**options).new_page()
  page.on(
    "console",
    lambda message: (
      found["console"].append(message.text)
      if message.type in ("error", "warning")
      and "400 (Bad Request)" not in message.text
      and "404 (Not Found)" not in message.text
      else None
    ),
  )
  page.on("pageerror", lambda error: found["console"].append(str(error)))
  page.goto(f"{PROJECT}/jobs")
  return page


def sign_in(page):
  page.get_by_label("Token").fill(TOKEN)
  page.get_by_role("button", name="Sign in").click()
  page.wait_for_url("**/jobs")


def look(page, name):
  """Checks a page as it is: what axe finds, its width, and a picture of it."""
  found["looked at"].append(name)
  page.evaluate(AXE)
  result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
  for violation in result["violations"]:
    if violation["impact"] in ("serious", "critical"):
      places = [node["html"][:120] for node in violation["nodes"][:2]]
      found["accessibility"].append([name, violation["id"], places])
  wide, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
  if wide > inner:
    found["too wide"].append([name, wide])
  page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


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

  page = open_page(browser, **MODES["desktop-light"])
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

  page = open_page(browser, java_script_enabled=False)
  sign_in(page)
  through_the_wizard(page, lambda name: None, 7)
  create(page)
  found["without scripts"] = page.locator("h1").inner_text()
  page.get_by_text("Cancel", exact=True).click()
  page.get_by_role("button", name="Cancel the job").click()
  page.goto(job)
  found["values without scripts"] = page.locator('td[data-step="train_total_loss"]').inner_text()

  for mode, options in MODES.items():
    page = open_page(browser, **options)
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
