"""What a reviewer does in Chromium, from a paused job to an answer; prints what was seen as JSON.

Run by the Python of an environment with playwright and axe-core-python: review_browser_test.py.
"""

import json
import time

from chromium import (
  ADDRESS,
  CHROMIUM,
  GIVEN,
  MODES,
  PROJECT,
  SHOTS,
  found,
  look,
  open_page,
  sign_in,
)
from playwright.sync_api import sync_playwright

JOB_PAGE = f"{ADDRESS}/console/{GIVEN}"
_JOB_SECONDS = 300


def signed_in(browser, **options):
  page = open_page(browser, **options)
  sign_in(page)
  return page


def wait_for(page, state):
  """Waits until the page of the job shows a state; returns the last one."""
  end = time.monotonic() + _JOB_SECONDS
  page.goto(JOB_PAGE)
  while (shown := page.locator("#state").inner_text()) != state:
    if shown in ("Failed", "Cancelled") or time.monotonic() > end:
      break
    page.wait_for_timeout(200)
  return shown


def row(page, number):
  return page.locator(f"#row-{number}")


def said(page):
  """Waits until a screen reader is told that row 1 is saved."""
  page.locator("#said", has_text="Row 1 is saved").wait_for(state="attached")


def review(page):
  """Edits and leaves out rows with scripts, mostly from the keyboard."""
  page.get_by_role("link", name="Review the rationales").click()
  page.wait_for_load_state()
  first = page.locator("article.review").nth(0)
  found["first has concerns"] = first.locator(".chip.doubt").count() > 0
  page.get_by_label("Words in the row").fill("Add")
  page.get_by_role("button", name="Filter").click()
  page.wait_for_load_state()
  rationale = row(page, 1).get_by_label("Rationale")
  rationale.fill("A person in a browser knows better.")
  rationale.press("Control+Enter")
  said(page)
  found["said"] = page.locator("#said").inner_text()
  found["focus went on"] = page.evaluate("document.activeElement.id").endswith("-rationale")
  found["figures"] = page.locator("#figures").inner_text().split("\n")
  row(page, 2).get_by_role("button", name="Leave out").click()
  row(page, 2).locator(".chip.left").wait_for()
  # Somebody else edits the row meanwhile.
  other = page.context.new_page()
  other.goto(f"{JOB_PAGE}:rationales?text=Add")
  row(other, 1).get_by_label("Label").fill("1000")
  row(other, 1).get_by_role("button", name="Save").click()
  said(other)
  row(page, 1).get_by_label("Label").fill("1001")
  row(page, 1).get_by_role("button", name="Save").click()
  row(page, 1).locator(".error").wait_for()
  found["conflict"] = row(page, 1).locator(".error").inner_text()
  found["typed stays"] = row(page, 1).get_by_label("Label").input_value()
  look(page, "conflict")
  row(page, 1).get_by_role("button", name="Save").click()
  row(page, 1).locator(".error").wait_for(state="detached")
  row(page, 1).get_by_label("Label").fill("")
  row(page, 1).get_by_label("Rationale").fill("")
  row(page, 1).get_by_role("button", name="Save").click()
  row(page, 1).locator(".error").wait_for()
  found["refused"] = row(page, 1).locator(".error").inner_text()


def without_scripts(page):
  page.goto(f"{JOB_PAGE}:rationales?show=")
  row(page, 3).get_by_label("Rationale").fill("Without a script.")
  row(page, 3).get_by_role("button", name="Save").click()
  page.wait_for_load_state()
  found["without scripts"] = [
    page.url.rpartition("#")[2],
    row(page, 3).get_by_label("Rationale").input_value(),
  ]


def approve(page):
  page.goto(f"{JOB_PAGE}:rationales")
  page.get_by_text("Approve", exact=True).click()
  look(page, "approve")
  page.get_by_role("button", name="Approve and train").click()
  page.wait_for_url(JOB_PAGE)


def ask(page, prompt):
  page.goto(f"{PROJECT}/try")
  page.get_by_label("Prompt").fill(prompt)
  page.get_by_text("Sampling").click()
  page.get_by_label("Most tokens").fill("12")
  page.get_by_role("button", name="Ask").click()
  page.locator("#answer article, #answer .bad").first.wait_for(timeout=120_000)


with sync_playwright() as playwright:
  browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
  page = signed_in(browser, **MODES["desktop-light"])
  found["paused"] = wait_for(page, "Paused")
  review(page)
  without_scripts(signed_in(browser, java_script_enabled=False))
  for mode, options in MODES.items():
    shown = signed_in(browser, **options)
    shown.goto(JOB_PAGE)
    look(shown, f"{mode}-paused")
    shown.goto(f"{JOB_PAGE}:rationales")
    look(shown, f"{mode}-rationales")
  approve(page)
  found["state"] = wait_for(page, "Succeeded")
  ask(page, "Add 1 and 2.")
  found["answer"] = page.locator("#answer .bad").count() == 0
  found["probability"] = page.get_by_text("probability of this label").count()
  found["timing"] = " tokens of prompt" in page.locator("#answer").inner_text()
  ask(page, "Translate this sentence into French, please: the weather is nice today.")
  found["drift"] = "unlike the training inputs" in page.locator("#answer").inner_text()
  for mode, options in MODES.items():
    shown = signed_in(browser, **options)
    shown.goto(JOB_PAGE)
    look(shown, f"{mode}-ended")
    shown.goto(f"{JOB_PAGE}:rationales")
    look(shown, f"{mode}-approved")
    shown.goto(f"{PROJECT}/models")
    look(shown, f"{mode}-models")
    shown.locator("main table a").first.click()
    look(shown, f"{mode}-model")
    shown.locator("main table a").first.click()
    look(shown, f"{mode}-version")
    found["lineage"] = "of 40 rows edited" in shown.locator("main").inner_text()
    shown.get_by_role("link", name="The report of the evaluation").click()
    shown.wait_for_load_state()
    shown.locator("#search").fill("Add")
    found["report"] = shown.locator("#shown").inner_text()
    found["cookies of the report"] = shown.evaluate("""() => {
      try { return document.cookie; } catch (error) { return error.name; }
    }""")
    shown.screenshot(path=f"{SHOTS}/{mode}-report.png")
    ask(shown, "Translate it.")
    look(shown, f"{mode}-try")
  browser.close()

print(json.dumps(found))
