"""The gate before every page: host, session, origin, role, the log of requests and the headers."""

import re
import urllib.parse
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dss_jax.console.console import HOME, Console
from dss_jax.console.session import SECONDS, Session, new_session
from dss_jax.console.visit import Visit
from dss_jax.jobs.api.access import AuditLog, Caller, check_role
from dss_jax.jobs.api.sending import Sending
from dss_jax.jobs.api_error import ApiError
from dss_jax.serving.errors import Refused

STATIC = f"{HOME}/static/"
SIGN_IN = f"{HOME}/sign-in"
_PROJECT = re.compile(rf"{HOME}/projects/(?P<project>[^/]+)(/|$)")
_HEADERS = {
  "content-security-policy": (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
  ),
  # Forms send their origin, which they would not with "no-referrer".
  "referrer-policy": "same-origin",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
}
# Asked again, but not sent again while they are the same.
_FILE_HEADERS = {**_HEADERS, "cache-control": "no-cache"}


class Gate:
  """Lets a browser's requests through that their caller may send, and notes each of them."""

  def __init__(self, app: Any, console: Console, log: AuditLog):
    self._app = app
    self._console = console
    self._log = log

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    request = Request(scope)
    is_file = scope["path"].startswith(STATIC)
    session = self._console.sessions.read(request.cookies.get(self._console.sessions.cookie))
    cookie = None
    if session is None:
      session = new_session()
      cookie = None if is_file else _cookie(self._console, session, request)
    request.state.visit = Visit(session)
    headers = _FILE_HEADERS if is_file else _HEADERS
    sending = Sending(send, headers if cookie is None else {**headers, "set-cookie": cookie})
    if is_file:
      await self._app(scope, receive, sending)
      return
    caller: Caller | None = None
    try:
      try:
        caller = self._caller(request, session)
        # The page that refuses a request says to whom it does.
        request.state.visit = Visit(session, caller)
        request.state.visit = Visit(session, caller, self._check(request, caller))
      except Exception as error:
        response = self._refusal(request, error)
        await response(scope, receive, sending)
        return
      await self._app(scope, receive, sending)
    finally:
      self._log.note(
        "-" if caller is None else caller.name, request.method, scope["path"], sending.status
      )

  def _caller(self, request: Request, session: Session) -> Caller | None:
    """Returns whose session it is; raises Refused for hosts and pages that may not use it."""
    access, host = self._console.access, request.headers.get("host", "")
    caller = None if access.needs_token else access.caller(None, host)
    origin = request.headers.get("origin")
    if origin is not None or request.method not in ("GET", "HEAD"):
      scheme, _, place = (origin or "").partition("://")
      if scheme not in ("http", "https") or place != host:
        raise ApiError("PERMISSION_DENIED", "pages of another site may not use the console")
    if access.needs_token and session.token:
      caller = access.find(lambda token: self._console.sessions.digest(token) == session.token)
    return caller

  def _check(self, request: Request, caller: Caller | None) -> str | None:
    """Returns the project of a page; raises Refused unless the caller may send the request."""
    path, method = request.scope["path"], request.method
    if caller is None:
      if path == SIGN_IN:
        return None
      raise Refused(401, "sign in first")
    match = _PROJECT.match(path)
    if match is None:
      return None
    project = match["project"]
    check_role(caller, project, method, path)
    self._console.service.check_parent(project, "-", any_location=True)
    return project

  def _refusal(self, request: Request, error: Exception) -> Response:
    if not isinstance(error, Refused) or error.status != 401:
      return self._console.refusal(request, error)
    # After the sign-in, the page that was asked for; of a form, none.
    target = SIGN_IN
    if request.method == "GET" and "hx-request" not in request.headers:
      target += "?" + urllib.parse.urlencode({"next": request.scope["path"]})
    if "hx-request" in request.headers:
      return Response(status_code=401, headers={"hx-redirect": target})
    return RedirectResponse(target, 303)


def _cookie(console: Console, session: Session, request: Request) -> str:
  """Returns the Set-Cookie header of a session."""
  response = Response()
  set_session(response, console, session, request)
  return response.headers["set-cookie"]


def set_session(response: Response, console: Console, session: Session, request: Request) -> None:
  """Gives a browser a session, which only this console's pages send."""
  response.set_cookie(
    console.sessions.cookie,
    console.sessions.write(session),
    max_age=SECONDS,
    path=HOME,
    secure=request.url.scheme == "https",
    httponly=True,
    samesite="strict",
  )
