"""Long-running operations: what a change answers with, at once or when it is done."""

import datetime
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dss_jax.jobs.api.filters import Field, time_of
from dss_jax.jobs.api.paging import page
from dss_jax.jobs.api.requests import api_version
from dss_jax.jobs.api_error import ApiError, invalid
from dss_jax.jobs.names import Name, check_id, new_id, split
from dss_jax.jobs.resources import Resources
from dss_jax.jobs.store import now

_KIND = "operations"
_TYPE = "type.googleapis.com/google.cloud.aiplatform"
EMPTY = "google.protobuf.Empty"
_KEPT = datetime.timedelta(days=30)
_FIELDS = {"create_time": Field("metadata.genericMetadata.createTime", "time")}


class Operations:
  """The operations of a server."""

  def __init__(self, resources: Resources):
    self._resources = resources

  def begin(self, request: Request, metadata_type: str, **metadata: Any) -> dict[str, Any]:
    """Returns a new operation that is not done.

    Args:
      request: whose path says the project, the location and the version of the API.
      metadata_type: such as "DeployModelOperationMetadata".
      metadata: further fields of it.
    """
    version = api_version(request)
    moment = now()
    parts = request.path_params
    return self._resources.add(
      Name(parts["project"], parts["location"], _KIND, new_id()),
      {
        "metadata": {
          "@type": f"{_TYPE}.{version}.{metadata_type}",
          "genericMetadata": {"createTime": moment, "updateTime": moment},
          **metadata,
        },
        "done": False,
      },
    )

  def finish(
    self, operation: Mapping[str, Any], response_type: str, response: Mapping[str, Any]
  ) -> dict[str, Any]:
    """Writes what an operation answers, and returns it.

    Args:
      response_type: such as "DeployModelResponse", or EMPTY.
    """
    version = operation["metadata"]["@type"].removeprefix(f"{_TYPE}.").partition(".")[0]
    name = EMPTY if response_type == EMPTY else f"google.cloud.aiplatform.{version}.{response_type}"
    return self._end(operation, response={"@type": f"type.googleapis.com/{name}", **response})

  def fail(self, operation: Mapping[str, Any], error: ApiError) -> dict[str, Any]:
    """Writes that an operation failed, and returns it."""
    return self._end(operation, error={"code": error.grpc_code, "message": str(error)})

  def done(
    self,
    request: Request,
    metadata_type: str,
    response_type: str = EMPTY,
    response: Mapping[str, Any] | None = None,
  ) -> dict[str, Any]:
    """Returns a new operation that is done already; see begin and finish."""
    return self.finish(self.begin(request, metadata_type), response_type, response or {})

  def tidy(self) -> None:
    """Ends the operations that an earlier process of the server left, and deletes old ones."""
    oldest = datetime.datetime.now(datetime.UTC) - _KEPT
    for operation in self._resources.list(_KIND):
      if not operation["done"]:
        self.fail(operation, ApiError("ABORTED", "the server was restarted meanwhile; try again"))
      elif time_of(operation["metadata"]["genericMetadata"]["updateTime"]) < oldest:
        self._resources.delete(split(operation["name"]))

  def routes(self) -> list[Route]:
    """Returns the routes, below the version of the API."""
    parent = "/projects/{project}/locations/{location}/operations"
    return [
      Route(parent, self._list),
      Route(parent + "/{id}:wait", self._get, methods=["POST"]),
      Route(parent + "/{id}:cancel", self._cancel, methods=["POST"]),
      Route(parent + "/{id}", self._get),
      Route(parent + "/{id}", self._delete, methods=["DELETE"]),
    ]

  async def _get(self, request: Request) -> Response:
    return JSONResponse(self._resources.get(_name(request)))

  async def _list(self, request: Request) -> Response:
    found = self._resources.list(
      _KIND, request.path_params["project"], request.path_params["location"]
    )
    return JSONResponse(page(found, request.query_params, _FIELDS, key=_KIND))

  async def _cancel(self, request: Request) -> Response:
    """Answers as the service did: a client learns from the operation whether it was cancelled."""
    if not self._resources.get(_name(request))["done"]:
      raise ApiError("UNIMPLEMENTED", "operations cannot be cancelled here; they end in minutes")
    return JSONResponse({})

  async def _delete(self, request: Request) -> Response:
    self._resources.delete(_name(request), _check_done)
    return JSONResponse({})

  def _end(self, operation: Mapping[str, Any], **outcome: Any) -> dict[str, Any]:
    def end(value: dict[str, Any]) -> None:
      value["metadata"]["genericMetadata"]["updateTime"] = now()
      value.update(done=True, **outcome)

    return self._resources.change(split(operation["name"]), end)


def _check_done(operation: Mapping[str, Any]) -> None:
  if not operation["done"]:
    raise invalid("the operation is not done; wait for it")


def _name(request: Request) -> Name:
  parts = request.path_params
  return Name(parts["project"], parts["location"], _KIND, check_id(parts["id"], "operation"))
