"""The routes that copy a student: to another model, project or key, or to a folder for others."""

import asyncio
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import pydantic
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dss_jax.jobs.api.access import check_role
from dss_jax.jobs.api.operations import Operations
from dss_jax.jobs.api.requests import read_object
from dss_jax.jobs.api_error import ApiError, invalid
from dss_jax.jobs.bodies.model_body import EXPORT_FORMATS, ModelDetails, Sent
from dss_jax.jobs.bodies.pipeline_body import EncryptionSpec
from dss_jax.jobs.bodies.schema import shown
from dss_jax.jobs.google_errors import failure
from dss_jax.jobs.names import Name, new_id, parse, parse_model, split_model
from dss_jax.jobs.service import JobService
from dss_jax.jobs.store import now
from dss_jax.jobs.students.versions import find_version
from dss_jax.serving.validation import validated
from dss_jax.storage.atomic import copy_file, make_folder, publishing, writing
from dss_jax.storage.files import join
from dss_jax.storage.sealed import SUFFIX, DataKey, read_header
from dss_jax.storage.sealed_folders import files_below, seal_files
from dss_jax.student.registry import RECORD, Registry, Version
from dss_jax.student.sealed_student import SEALED, sealed_name

# Of a version's record, what an encrypted copy has not, and what registering adds.
_PLAIN = ("metrics", "lineage", "report", "source_digest")
_ADDED = ("created", "size_bytes", "encryption_spec")


class _Destination(Sent):
  output_uri_prefix: Annotated[str, pydantic.Field(min_length=1, max_length=1024)]


class _OutputConfig(Sent):
  export_format_id: str = ""
  artifact_destination: _Destination


class _Export(Sent):
  output_config: _OutputConfig


class _Copy(Sent):
  source_model: str
  model_id: str = ""
  parent_model: str = ""
  encryption_spec: EncryptionSpec = EncryptionSpec()


class ModelCopiesApi:
  """The routes, below the version of the API."""

  def __init__(self, service: JobService, operations: Operations):
    self._service = service
    self._operations = operations
    self._tasks: set[asyncio.Task[None]] = set()

  def routes(self) -> list[Route]:
    parent = "/projects/{project}/locations/{location}/models"
    return [
      Route(parent + ":copy", self._copy, methods=["POST"]),
      Route(parent + "/{model}:export", self._export, methods=["POST"]),
    ]

  async def _export(self, request: Request) -> Response:
    """Answers at once; the operation is done when the folder is whole."""
    project = request.path_params["project"]
    version = find_version(self._service.registry(project), request.path_params["model"])
    config = validated(_Export, await read_object(request)).output_config
    form = config.export_format_id or EXPORT_FORMATS[0]
    if form not in EXPORT_FORMATS:
      raise invalid(
        f"outputConfig.exportFormatId: is {shown(form)}, but there are {', '.join(EXPORT_FORMATS)}"
      )
    prefix = config.artifact_destination.output_uri_prefix.rstrip("/")
    name = version.details.get("display_name") or version.name
    own = "".join(each if each.isalnum() or each in "-_" else "_" for each in name)
    # Google's clients read the folder's name from the operation.
    uri = f"{prefix}/model-export-{own}-{now().replace(':', '_')}/{form}"
    folder = self._service.resolve(uri, "outputConfig.artifactDestination.outputUriPrefix", project)
    self._service.private.check_student(project, version)
    operation = self._operations.begin(
      request, "ExportModelOperationMetadata", outputInfo={"artifactOutputUri": uri}
    )
    self._start(operation, "ExportModelResponse", lambda: self._write(version, form, folder))
    return JSONResponse(operation)

  def _write(self, version: Version, form: str, folder: str) -> dict[str, Any]:
    """Writes a student in a format; an encrypted one becomes one sealed file."""
    if not version.is_sealed:
      _write_format(version.folder, form, folder)
      return {}
    key = self._service.private.keyring.unlock_for(None)(read_header(version.folder / SEALED))
    with self._service.private.opened(version) as opened:
      plain = opened.with_name("export")
      _write_format(opened, form, str(plain))
      make_folder(folder)
      seal_files(join(folder, f"{form}{SUFFIX}"), key, f"exports/{form}", files_below(plain))
    return {}

  async def _copy(self, request: Request) -> Response:
    """Answers at once; the operation is done when the copy is registered."""
    parts = request.path_params
    sent = validated(_Copy, await read_object(request))
    source = split_model(sent.source_model, "sourceModel")
    # As if the caller had read it there.
    check_role(request.state.caller, source.project, "GET", request.url.path)
    self._service.check_parent(source.project, source.location)
    version = find_version(self._service.registry(source.project), source.id, "sourceModel")
    project, registry = parts["project"], self._service.registry(parts["project"])
    if sent.parent_model and sent.model_id:
      raise invalid("parentModel: is given with modelId; give one of the two")
    given = sent.model_id or (version.name if project != source.project else new_id())
    if sent.parent_model:
      parent = parse(sent.parent_model, "models", project, "parentModel")
      given = find_version(registry, parent.id, "parentModel").name
    name, _ = parse_model(given, "modelId")
    if not sent.parent_model and name in registry.names():
      raise ApiError(
        "ALREADY_EXISTS", f"models/{name}: exists already; give another modelId, or parentModel"
      )
    registry.prepare(name)
    key = self._key(sent.encryption_spec.kms_key_name, source, project, version)
    operation = self._operations.begin(request, "CopyModelOperationMetadata")

    def copy() -> dict[str, Any]:
      copied = self._register(version, registry, name, key)
      model = Name(project, parts["location"], "models", name)
      return {"model": str(model), "modelVersionId": str(copied.number)}

    self._start(operation, "CopyModelResponse", copy)
    return JSONResponse(operation)

  def _key(self, given: str, source: Name, project: str, version: Version) -> DataKey | None:
    """Returns the key of a copy: the one that is given, else that of the original."""
    private = self._service.private
    private.check_student(source.project, version)
    if given:
      return private.keyring.new(given, project, f"copy-{new_id()}")
    if version.is_sealed:
      return private.keyring.unlock_for(project)(read_header(version.folder / SEALED))
    return None

  def _register(
    self, version: Version, registry: Registry, name: str, key: DataKey | None
  ) -> Version:
    hidden = _ADDED if key is None else (*_ADDED, *_PLAIN)
    record: dict[str, Any] = {"copy": True}
    record |= {each: value for each, value in version.record.items() if each not in hidden}
    if key is not None:
      record["encryption_spec"] = {"kmsKeyName": key.key_name}
    with self._service.private.opened(version) as opened:

      def fill(folder: pathlib.Path) -> None:
        files = [each for each in files_below(opened) if each[1] != RECORD]
        if key is not None:
          seal_files(folder / SEALED, key, sealed_name(name), files)
          return
        _copy_files(files, folder)

      copied = registry.register(name, record, fill)
    said = {each: version.details.get(each) for each in ModelDetails.model_fields}
    return registry.describe(copied.reference, said)

  def _start(
    self,
    operation: Mapping[str, Any],
    response_type: str,
    work: Callable[[], Mapping[str, Any]],
  ) -> None:
    """Does what an operation waits for in a thread."""

    async def run() -> None:
      try:
        response = await asyncio.to_thread(work)
      # Whatever happens, a client waits for the operation.
      except Exception as error:
        self._operations.fail(operation, failure(error, self._service))
      else:
        self._operations.finish(operation, response_type, response)

    task = asyncio.create_task(run())
    self._tasks.add(task)
    task.add_done_callback(self._tasks.discard)


def _write_format(student: pathlib.Path, form: str, folder: str) -> None:
  """Writes a student's plain folder in one of EXPORT_FORMATS."""
  if form == "custom-trained":
    # As models:upload and the commands take it.
    with writing(folder), publishing(folder) as part:
      _copy_files([each for each in files_below(student) if each[1] != RECORD], part)
    return
  # Late: reading jobs and models needs no JAX.
  from dss_jax.student.export import export_student

  export_student(student, folder, form)  # type: ignore[arg-type]


def _copy_files(files: list[tuple[pathlib.Path, str]], folder: pathlib.Path) -> None:
  for path, name in files:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    copy_file(path, folder / name)
