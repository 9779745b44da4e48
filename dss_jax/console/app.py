"""The routes of the console, for the application of the API."""

import pathlib

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from dss_jax.console.console import HOME, Console
from dss_jax.console.data_pages import DataPages
from dss_jax.console.examination import Examiner
from dss_jax.console.gate import Gate
from dss_jax.console.job_list import JobListPages
from dss_jax.console.job_page import JobPages
from dss_jax.console.model_pages import ModelPages
from dss_jax.console.review_page import ReviewPages
from dss_jax.console.session import Sessions, read_key
from dss_jax.console.sign_in import SignInPages
from dss_jax.console.try_page import TryPages
from dss_jax.console.wizard import WizardPages
from dss_jax.jobs.api.access import AUDIT_FILE, Access, AuditLog
from dss_jax.jobs.service import JobService

_STATIC = pathlib.Path(__file__).parent / "static"


def routes(service: JobService, access: Access) -> list[BaseRoute]:
  """Returns the routes of the console, all below /console, but for the one that leads there."""
  examiner = Examiner()
  console = Console(service, access, Sessions(read_key(service.root)))
  pages = [
    *SignInPages(console).routes(),
    *JobListPages(console).routes(),
    # Before the jobs', whose names would match a verb, too.
    *ReviewPages(console).routes(),
    *ModelPages(console).routes(),
    *JobPages(console).routes(),
    *WizardPages(console, examiner).routes(),
    *DataPages(console, examiner).routes(),
    *TryPages(console).routes(),
    Mount("/static", StaticFiles(directory=_STATIC)),
  ]
  log = AuditLog(service.root / AUDIT_FILE)
  app = Starlette(routes=pages, exception_handlers=console.handlers())
  app.router.redirect_slashes = False
  return [Route("/", _home), Route(HOME, _home), Mount(HOME, Gate(app, console, log))]


async def _home(request: Request) -> Response:
  return RedirectResponse(f"{HOME}/", 307)
