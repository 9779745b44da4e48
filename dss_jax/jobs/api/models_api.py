"""The routes of models: the registry's versions, described, aliased, uploaded and deleted."""

import asyncio
from collections.abc import Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dss_jax.errors import UserError
from dss_jax.jobs.api.filters import Field
from dss_jax.jobs.api.operations import Operations
from dss_jax.jobs.api.paging import page
from dss_jax.jobs.api.requests import changed, read_object
from dss_jax.jobs.api_error import ApiError, invalid
from dss_jax.jobs.bodies.job_config import model_id
from dss_jax.jobs.bodies.model_body import ModelDetails, SentAliases, Upload, model_json
from dss_jax.jobs.names import new_id, parse, parse_model
from dss_jax.jobs.service import JobService
from dss_jax.jobs.store import now
from dss_jax.jobs.students.endpoints import Endpoints
from dss_jax.jobs.students.versions import find_version
from dss_jax.serving.validation import validated
from dss_jax.storage.sealed import DataKey
from dss_jax.student.registry import Registry, Version

_FIELDS = {
  "model": Field("id"),
  "name": Field("name"),
  "display_name": Field("displayName"),
  "labels": Field("labels", "labels"),
  "base_model_name": Field("baseModelSource.genieSource.baseModelUri"),
  "create_time": Field("createTime", "time"),
  "update_time": Field("updateTime", "time"),
}
# Of the proto's verbs, those that a registry of students does not have.
_MISSING = ("updateExplanationDataset", "getIamPolicy", "setIamPolicy")


class ModelsApi:
  """The routes, below the version of the API."""

  def __init__(self, service: JobService, endpoints: Endpoints, operations: Operations):
    self._service = service
    self._endpoints = endpoints
    self._operations = operations

  def routes(self) -> list[Route]:
    parent = "/projects/{project}/locations/{location}/models"
    model = parent + "/{model}"
    return [
      Route(parent, self._list),
      Route(parent + ":upload", self._upload, methods=["POST"]),
      Route(model + ":listVersions", self._list_versions),
      Route(model + ":deleteVersion", self._delete_version, methods=["DELETE"]),
      Route(model + ":mergeVersionAliases", self._merge_aliases, methods=["POST"]),
      *(Route(f"{model}:{verb}", _unimplemented, methods=["GET", "POST"]) for verb in _MISSING),
      Route(model, self._get),
      Route(model, self._patch, methods=["PATCH"]),
      Route(model, self._delete, methods=["DELETE"]),
    ]

  async def _get(self, request: Request) -> Response:
    return JSONResponse(self._json(request, [self._version(request)])[0])

  async def _list(self, request: Request) -> Response:
    registry = self._registry(request)
    versions = [registry.version(name) for name in registry.names()]
    found = [
      {**each, "id": each["name"].rpartition("/")[2]} for each in self._json(request, versions)
    ]
    content = page(found, request.query_params, _FIELDS, key="models")
    for each in content.get("models", []):
      del each["id"]
    return JSONResponse(content)

  async def _list_versions(self, request: Request) -> Response:
    version = self._version(request)
    found = self._json(request, self._registry(request).versions(version.name))
    # A version's own name, by which a page goes on; the answer has the model's.
    own = [{**each, "name": f"{each['name']}@{int(each['versionId']):09}"} for each in found]
    content = page(own, request.query_params, _FIELDS, key="models", default_order="create_time")
    for each in content.get("models", []):
      each["name"] = each["name"].partition("@")[0]
    return JSONResponse(content)

  async def _patch(self, request: Request) -> Response:
    version = self._version(request)
    body = await read_object(request)
    details = validated(ModelDetails, body)
    changes = changed(request, body, ModelDetails)
    said = {name: getattr(details, name) or None for name in changes}
    changed_version = self._registry(request).describe(
      version.reference, {**said, "update_time": now()}
    )
    return JSONResponse(self._json(request, [changed_version])[0])

  async def _delete(self, request: Request) -> Response:
    version = self._version(request)
    if "@" in request.path_params["model"]:
      raise invalid(f"{version.reference}: one version is deleted with :deleteVersion")
    return self._deleted(request, version.name, "DeleteOperationMetadata")

  async def _delete_version(self, request: Request) -> Response:
    version = self._version(request)
    if "@" not in request.path_params["model"]:
      raise invalid(f"{version.name}: name the version to delete: {version.name}@VERSION")
    return self._deleted(request, version.reference, "DeleteOperationMetadata")

  async def _merge_aliases(self, request: Request) -> Response:
    version = self._version(request)
    aliases = validated(SentAliases, await read_object(request)).version_aliases
    merged = self._registry(request).merge_aliases(version.reference, aliases)
    return JSONResponse(self._json(request, [merged])[0])

  async def _upload(self, request: Request) -> Response:
    sent = validated(Upload, await read_object(request))
    project = request.path_params["project"]
    given = sent.model_id or model_id(sent.model.display_name or "")
    if sent.parent_model:
      given = parse(sent.parent_model, "models", project, "parentModel").id
    name, _ = parse_model(given, "modelId")
    self._registry(request).prepare(name)
    if not sent.model.artifact_uri:
      raise invalid("model.artifactUri: is required; give the folder of a student")
    folder = self._service.resolve(sent.model.artifact_uri, "model.artifactUri", project)
    given_key = sent.model.encryption_spec.kms_key_name
    keyring = self._service.private.keyring
    key = keyring.new(given_key, project, f"upload-{new_id()}") if given_key else None
    if "://" in folder:
      raise invalid("model.artifactUri: must be on a disk of the server; copy the student there")
    try:
      version = await asyncio.to_thread(_register, folder, name, self._registry(request), key)
    except UserError as error:
      raise invalid(str(error).replace(folder, sent.model.artifact_uri)) from None
    registry = self._registry(request)
    fields = ("display_name", "description", "version_description", "labels")
    registry.describe(version.reference, {each: getattr(sent.model, each) for each in fields})
    if sent.model.version_aliases:
      registry.merge_aliases(version.reference, sent.model.version_aliases)
    shown = self._json(request, [registry.version(version.reference)])[0]
    response = {"model": shown["name"], "modelVersionId": str(version.number)}
    operation = self._operations.done(
      request, "UploadModelOperationMetadata", "UploadModelResponse", response
    )
    return JSONResponse(operation)

  def _deleted(self, request: Request, reference: str, metadata_type: str) -> Response:
    try:
      self._registry(request).delete(reference)
    # All that can still be wrong is that the version is used.
    except UserError as error:
      raise ApiError("FAILED_PRECONDITION", str(error)) from None
    return JSONResponse(self._operations.done(request, metadata_type))

  def _registry(self, request: Request) -> Registry:
    return self._service.registry(request.path_params["project"])

  def _version(self, request: Request) -> Version:
    """Returns the version that the path means; raises ApiError NOT_FOUND."""
    return find_version(self._registry(request), request.path_params["model"])

  def _json(self, request: Request, versions: Iterable[Version]) -> list[dict[str, Any]]:
    project, location = request.path_params["project"], request.path_params["location"]
    deployments = self._endpoints.deployments(project)
    return [
      model_json(version, project, location, deployments.get((version.name, version.number), []))
      for version in versions
    ]


def _register(folder: str, name: str, registry: Registry, key: DataKey | None) -> Version:
  from dss_jax.student.registration import register_student

  return register_student(folder, name, registry.root, key)


async def _unimplemented(request: Request) -> Response:
  raise ApiError("UNIMPLEMENTED", "models here do not do this; see docs/jobs_api.md")
