"""The data sets that people uploaded to a project."""

import urllib.parse

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from dss_jax.config.schema import DataConfig
from dss_jax.console.console import HOME, Console, redirect
from dss_jax.console.examination import Examiner, Source
from dss_jax.console.forms import FORM_BYTES
from dss_jax.console.visit import caller_of
from dss_jax.jobs.uploads import Upload
from dss_jax.serving.errors import Refused

SECTION = "data"
_PATH = "/projects/{project}/data"


class DataPages:
  """The list of uploads, and what is in each."""

  def __init__(self, console: Console, examiner: Examiner):
    self._console = console
    self._uploads = console.service.uploads
    self._service = console.service
    self._examiner = examiner

  def routes(self) -> list[BaseRoute]:
    console = self._console
    most = self._uploads.max_bytes + FORM_BYTES
    return [
      console.show(_PATH, self._list),
      console.act(_PATH, self._add, limit_bytes=most),
      console.act(_PATH + "/{upload}:delete", self._delete),
      console.show(_PATH + "/{upload}", self._show),
    ]

  def _list(self, request: Request, error: str = "") -> Response:
    return self._console.page(
      request,
      "data.html",
      section=SECTION,
      status=400 if error else 200,
      uploads=self._uploads.list(request.path_params["project"]),
      max_bytes=self._uploads.max_bytes,
      error=error,
    )

  def _add(self, request: Request, form: FormData) -> Response:
    """Stores a file, with its bad lines: its page names them."""
    file, project = form.get("file"), request.path_params["project"]
    if not isinstance(file, UploadFile) or not file.filename:
      return self._list(request, "Choose a file first.")
    try:
      upload = self._uploads.add(project, file.filename, file.file, caller_of(request).name)
    except Refused as error:
      return self._list(request, f"Upload failed: {error}")
    return redirect(f"{HOME}/projects/{project}/data/{upload.id}")

  def _show(self, request: Request) -> Response:
    project, upload = request.path_params["project"], self._upload(request)
    source = Source(self._uploads.path(project, upload), upload.name)
    return self._console.page(
      request,
      "upload.html",
      section=SECTION,
      upload=upload,
      examination=self._examiner.examine(source, None, DataConfig()),
      create=f"create?{urllib.parse.urlencode({'data': upload.uri})}",
    )

  def _delete(self, request: Request, form: FormData) -> Response:
    project = request.path_params["project"]
    self._uploads.delete(project, self._upload(request).id, self._service.paths_in_use())
    return redirect(f"{HOME}/projects/{project}/data")

  def _upload(self, request: Request) -> Upload:
    return self._uploads.get(request.path_params["project"], request.path_params["upload"])
