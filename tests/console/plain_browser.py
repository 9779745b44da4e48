"""A browser without a screen: keeps cookies, sends an Origin, and fills in forms as they are."""

import html.parser
import re

from starlette.testclient import TestClient

from dss_jax.console.app import routes
from dss_jax.jobs.api.access import Access
from dss_jax.jobs.api.app import make_app

HOST = "http://127.0.0.1"


class _Forms(html.parser.HTMLParser):
  """Collects the forms of a page with the values that a browser would send."""

  def __init__(self):
    super().__init__()
    self.forms = []
    self._select = None

  def handle_starttag(self, tag, attributes):
    given = dict(attributes)
    if tag == "form":
      action, method = given.get("action", ""), given.get("method", "get")
      self.forms.append({"action": action, "method": method, "values": {}, "buttons": []})
    if not self.forms:
      return
    form, name = self.forms[-1], given.get("name")
    kind = given.get("type", "text")
    is_unchecked = kind in ("radio", "checkbox") and "checked" not in given
    if tag == "input" and name and kind != "file" and not is_unchecked:
      form["values"][name] = given.get("value", "")
    elif tag == "select":
      self._select = name
    elif tag == "option" and self._select and ("selected" in given):
      form["values"][self._select] = given.get("value", "")
    elif tag == "button":
      form["buttons"].append((given.get("name"), given.get("value")))

  def handle_endtag(self, tag):
    if tag == "select":
      self._select = None


class Browser:
  """A browser at a console; `get` and `send` return pages."""

  def __init__(self, service, access=None, **options):
    access = access or Access()
    app = make_app(service, access, routes=routes(service, access), **options)
    self.client = TestClient(app, base_url=HOST, raise_server_exceptions=False)
    self.page = None

  def __enter__(self):
    self.client.__enter__()
    return self

  def __exit__(self, *failure):
    self.client.__exit__(*failure)

  def get(self, path, **options):
    path = path if path.startswith("/") else f"/console/{path}"
    self.page = self.client.get(path, **options)
    return self.page

  def forms(self):
    """The forms of the page, each with its action, method and values."""
    parser = _Forms()
    parser.feed(self.page.text)
    return parser.forms

  def form(self, action):
    """The form of the page whose action ends so."""
    return next(form for form in self.forms() if form["action"].endswith(action))

  def send(self, action, values=None, *, files=None, headers=None, without=()):
    """Sends a form of the page with other values; redirects are followed."""
    form = self.form(action)
    filled = {**form["values"], **(values or {})}
    for name in without:
      filled.pop(name, None)
    self.page = self.client.post(
      form["action"],
      data={name: value for name, value in filled.items() if value is not None},
      files=files,
      headers={"origin": HOST, **(headers or {})},
    )
    return self.page

  def post(self, path, values=None, *, headers=None):
    """Sends a form that is on no page."""
    self.page = self.client.post(
      path, data=values or {}, headers={"origin": HOST, **(headers or {})}
    )
    return self.page

  def sign_in(self, token):
    self.get("sign-in")
    return self.send("sign-in", {"token": token})

  @property
  def form_token(self):
    return re.search(r'name="form_token" value="([0-9a-f]+)"', self.page.text)[1]
