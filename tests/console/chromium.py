"""Pages of the console in Chromium, whose errors, accessibility and width are noted.

For the scripts that browser_test.py and review_browser_test.py run, by a Python with playwright and
axe-core-python. Their arguments are the server's address, a token, Chromium, something of their
own, and a folder for pictures.
"""

import pathlib
import sys

import axe_core_python

ADDRESS, TOKEN, CHROMIUM, GIVEN, SHOTS = sys.argv[1:]
AXE = pathlib.Path(axe_core_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
PROJECT = f"{ADDRESS}/console/projects/my-project"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
MODES = {
  f"{device}-{scheme}": {"viewport": size, "color_scheme": scheme}
  for device, size in (("desktop", DESKTOP), ("phone", PHONE))
  for scheme in ("light", "dark")
}
found = {"console": [], "accessibility": [], "too wide": [], "looked at": []}


def open_page(browser, *, expected=(), **options):
  """Returns the page to sign in on, whose errors are noted but those with an expected text."""
  page = browser.new_context(**options).new_page()

  def note(message):
    is_expected = any(text in message.text for text in expected)
    if message.type in ("error", "warning") and not is_expected:
      found["console"].append(message.text)

  page.on("console", note)
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
