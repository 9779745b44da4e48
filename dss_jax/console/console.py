"""What all pages share: the server's objects, the templates, and how forms are taken."""

import http
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from dss_jax.console.filters import FILTERS
from dss_jax.console.forms import FORM_BYTES, check_form_token, read_form
from dss_jax.console.navigation import SECTIONS
from dss_jax.console.session import Sessions
from dss_jax.console.visit import visit_of
from dss_jax.jobs.api.access import Access
from dss_jax.jobs.google_errors import refused
from dss_jax.jobs.service import JobService

HOME = "/console"
Show = Callable[[Request], Response | Awaitable[Response]]
Act = Callable[[Request, FormData], Response | Awaitable[Response]]


class Console:
  """The console of a server.

  Attributes:
    service: the jobs, as the API has them.
    access: the tokens.
    sessions: of the browsers.
    templates: HTML, in which every value is escaped.
  """

  def __init__(self, service: JobService, access: Access, sessions: Sessions):
    self.service = service
    self.access = access
    self.sessions = sessions
    self.templates = jinja2.Environment(
      loader=jinja2.PackageLoader("dss_jax.console"),
      autoescape=True,
      undefined=jinja2.StrictUndefined,
      trim_blocks=True,
      lstrip_blocks=True,
    )
    self.templates.filters.update(FILTERS)

  def page(
    self,
    request: Request,
    template: str,
    *,
    section: str | None = None,
    status: int = 200,
    **values: Any,
  ) -> Response:
    """Returns a page, or a part of one.

    Args:
      section: the path of the section that the navigation marks as the current one.
      values: of the template; it also has `visit`, `form_token`, `home` (/console), `base` (the
        project's /console/projects/PROJECT) and `sections`.
    """
    visit = visit_of(request)
    html = self.templates.get_template(template).render(
      visit=visit,
      form_token=self.sessions.form_token(visit.session),
      needs_token=self.access.needs_token,
      home=HOME,
      base=f"{HOME}/projects/{visit.project}",
      sections=[each for each in SECTIONS if visit.may(each.role)],
      section=section,
      **values,
    )
    return HTMLResponse(html, status)

  def refusal(self, request: Request, error: Exception) -> Response:
    """Returns the page that says why a request is refused."""
    reason = refused(error, self.service)
    title = http.HTTPStatus(reason.status).phrase if reason.status != 499 else "Cancelled"
    is_path = isinstance(error, HTTPException) and reason.status == 404
    message = "There is no such page." if is_path else str(reason)
    return self.page(request, "error.html", status=reason.status, title=title, message=message)

  def show(self, path: str, handler: Show) -> Route:
    """Returns the route of a page."""
    return Route(path, handler, methods=["GET"])

  def act(self, path: str, handler: Act, *, limit_bytes: int = FORM_BYTES) -> Route:
    """Returns the route of a form; it is read, bounded, and has its session's token.

    Args:
      handler: is run in a thread unless it is a coroutine function.
    """

    async def take(request: Request) -> Response:
      async with read_form(request, limit_bytes) as form:
        check_form_token(request, form, self.sessions)
        if inspect.iscoroutinefunction(handler):
          response = await handler(request, form)
        else:
          response = await run_in_threadpool(handler, request, form)
        assert isinstance(response, Response)
        return response

    return Route(path, take, methods=["POST"])

  def handlers(self) -> dict[Any, Any]:
    """Returns the exception handlers of the console's application."""

    async def answer(request: Request, error: Exception) -> Response:
      return self.refusal(request, error)

    return dict.fromkeys((HTTPException, Exception), answer)


def redirect(path: str) -> Response:
  """Returns the answer to a form: the page to go on with."""
  return RedirectResponse(path, 303)
