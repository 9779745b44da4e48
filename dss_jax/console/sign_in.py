"""Signing in with a bearer token, signing out, and the choice of a project."""

import re
import urllib.parse

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from dss_jax.console.console import HOME, Console, redirect
from dss_jax.console.forms import text_of
from dss_jax.console.gate import set_session
from dss_jax.console.session import new_session
from dss_jax.console.visit import caller_of, visit_of
from dss_jax.serving.errors import Refused

# A page of this console: never another site, whatever a link says.
_NEXT = re.compile(rf"{HOME}/[A-Za-z0-9/_.:@~-]*")


class SignInPages:
  """The pages of no project."""

  def __init__(self, console: Console):
    self._console = console

  def routes(self) -> list[BaseRoute]:
    console = self._console
    return [
      console.show("/", self._projects),
      console.show("/open", self._open),
      console.show("/sign-in", self._show),
      console.act("/sign-in", self._sign_in),
      console.act("/sign-out", self._sign_out),
    ]

  def _show(self, request: Request) -> Response:
    if visit_of(request).caller is not None:
      return redirect(f"{HOME}/")
    return self._console.page(
      request, "sign_in.html", next=request.query_params.get("next", ""), error=""
    )

  def _sign_in(self, request: Request, form: FormData) -> Response:
    token, target = text_of(form, "token"), text_of(form, "next")
    host = request.headers.get("host", "")
    try:
      self._console.access.caller(f"Bearer {token}", host)
    except Refused:
      return self._console.page(
        request,
        "sign_in.html",
        status=401,
        next=target,
        error="This is not a token of this server.",
      )
    response = redirect(target if _NEXT.fullmatch(target) else f"{HOME}/")
    # A new one, so that nobody who knew the old session has this one.
    session = new_session(self._console.sessions.digest(token))
    set_session(response, self._console, session, request)
    return response

  def _sign_out(self, request: Request, form: FormData) -> Response:
    self._console.sessions.end(visit_of(request).session)
    response = redirect(f"{HOME}/sign-in")
    set_session(response, self._console, new_session(), request)
    return response

  def _projects(self, request: Request) -> Response:
    projects = self._console.service.known_projects()
    caller = caller_of(request)
    shown = [name for name in projects if caller.may("viewer", name)]
    is_open = self._console.service.projects is None
    if len(shown) == 1 and not is_open:
      return redirect(_jobs_of(shown[0]))
    return self._console.page(request, "projects.html", projects=shown, is_open=is_open)

  def _open(self, request: Request) -> Response:
    project = request.query_params.get("project", "").strip()
    return redirect(_jobs_of(project) if project else f"{HOME}/")


def _jobs_of(project: str) -> str:
  return f"{HOME}/projects/{urllib.parse.quote(project, safe='')}/jobs"
