"""Endpoints: names under which versions of models answer, and which versions they are.

What is here needs neither HTTP nor a device: the server loads the students (student_pool.py). A
deployed version is marked as used in the registry, so that it cannot be deleted.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

from dss_jax.jobs.api_error import ApiError, invalid
from dss_jax.jobs.names import Name, new_id, split
from dss_jax.jobs.resources import Resources
from dss_jax.jobs.store import now
from dss_jax.jobs.students.versions import find_version
from dss_jax.student.registry import Registry, Version

_KIND = "endpoints"
# Each has an endpoint, a deployedModelId and a displayName.
Places = list[dict[str, str]]


class Endpoints:
  """The endpoints of a server."""

  def __init__(self, resources: Resources, registry_of: Callable[[str], Registry]):
    """Opens them.

    Args:
      registry_of: returns the registry of a project.
    """
    self._resources = resources
    self._registry_of = registry_of

  def create(self, name: Name, values: Mapping[str, Any]) -> dict[str, Any]:
    """Adds an endpoint without a model; raises ApiError ALREADY_EXISTS."""
    moment = now()
    times = {"createTime": moment, "updateTime": moment}
    return self._resources.add(name, {**values, **times, "deployedModels": [], "trafficSplit": {}})

  def get(self, name: Name) -> dict[str, Any]:
    """Returns an endpoint's JSON; raises ApiError NOT_FOUND."""
    return self._resources.get(name)

  def list(self, project: str | None = None, location: str = "-") -> list[dict[str, Any]]:
    """Returns the endpoints of a parent; None means all projects, "-" all locations."""
    return self._resources.list(_KIND, project, location)

  def change(self, name: Name, values: Mapping[str, Any]) -> dict[str, Any]:
    """Changes what is said of an endpoint, or its trafficSplit."""

    def change(endpoint: dict[str, Any]) -> None:
      endpoint.update(values, updateTime=now())
      if "trafficSplit" in values:
        _check_split(endpoint)

    return self._resources.change(name, change)

  def delete(self, name: Name) -> None:
    """Deletes an endpoint; raises ApiError FAILED_PRECONDITION while a model is deployed to it."""

    def check(endpoint: Mapping[str, Any]) -> None:
      if endpoint["deployedModels"]:
        raise ApiError(
          "FAILED_PRECONDITION", f"{name}: has deployed models; undeploy them before you delete it"
        )

    self._resources.delete(name, check)

  def deploy(
    self,
    name: Name,
    version: Version,
    *,
    model: str,
    deployed_id: str | None = None,
    display_name: str | None = None,
    traffic_split: Mapping[str, int] | None = None,
  ) -> dict[str, Any]:
    """Deploys a version to an endpoint, and returns it as a deployed model.

    Args:
      model: the name of its resource.
      traffic_split: percent by deployed model's id; "0" is this one. By default the first model of
        an endpoint gets all requests, a later one none.
    """
    deployed = {
      "id": deployed_id or new_id(),
      "model": model,
      "modelVersionId": str(version.number),
      "displayName": display_name or version.name,
      "createTime": now(),
    }

    def change(endpoint: dict[str, Any]) -> None:
      if any(each["id"] == deployed["id"] for each in endpoint["deployedModels"]):
        raise ApiError("ALREADY_EXISTS", f"{name}: has a deployed model {deployed['id']} already")
      self._registry_of(name.project).use(str(name), version.reference)
      endpoint["deployedModels"].append(deployed)
      if traffic_split:
        endpoint["trafficSplit"] = {
          deployed["id"] if each == "0" else each: share for each, share in traffic_split.items()
        }
      else:
        endpoint["trafficSplit"].setdefault(deployed["id"], 0 if endpoint["trafficSplit"] else 100)
      endpoint["updateTime"] = now()
      _check_split(endpoint)

    self._resources.change(name, change)
    return deployed

  def deploy_new(
    self, project: str, location: str, version: Version, *, model: str, display_name: str
  ) -> Name:
    """Returns the endpoint of a version, a new one unless it is deployed already."""
    places = self.deployments(project).get((version.name, version.number))
    if places:
      return split(places[0]["endpoint"])
    name = Name(project, location, _KIND, new_id())
    self.create(name, {"displayName": display_name})
    self.deploy(name, version, model=model, display_name=display_name)
    return name

  def undeploy(
    self, name: Name, deployed_id: str, traffic_split: Mapping[str, int] | None = None
  ) -> dict[str, Any]:
    """Undeploys a model from an endpoint, and returns what was deployed."""
    gone: dict[str, Any] = {}

    def change(endpoint: dict[str, Any]) -> None:
      left = [each for each in endpoint["deployedModels"] if each["id"] != deployed_id]
      if len(left) == len(endpoint["deployedModels"]):
        raise ApiError("NOT_FOUND", f"{name}: has no deployed model {deployed_id[:70]!r}")
      gone.update(next(each for each in endpoint["deployedModels"] if each["id"] == deployed_id))
      split_ = dict(traffic_split or endpoint["trafficSplit"])
      share = split_.pop(deployed_id, 0)
      if left and share:
        raise ApiError(
          "FAILED_PRECONDITION",
          f"{name}: {share} % of the requests go to {deployed_id}; send a trafficSplit without it",
        )
      endpoint.update(deployedModels=left, trafficSplit=split_ if left else {}, updateTime=now())
      _check_split(endpoint)

    self._resources.change(name, change)
    # Not before: a process that is killed leaves a mark too many, never a deployment without one.
    with self._resources.locked():
      self._release_unused(name.project)
    return gone

  def deployments(self, project: str) -> dict[tuple[str, int], Places]:
    """Returns where the versions of a project's models are deployed, by name and number."""
    found: dict[tuple[str, int], Places] = {}
    for endpoint in sorted(self.list(project), key=lambda each: each["createTime"]):
      for deployed in endpoint["deployedModels"]:
        place = {
          "endpoint": endpoint["name"],
          "deployedModelId": deployed["id"],
          "displayName": deployed["displayName"],
        }
        found.setdefault(_version_of(deployed), []).append(place)
    return found

  def chosen(self, name: Name) -> tuple[dict[str, Any], Version]:
    """Returns the deployed model that answers a request now, and its version.

    Raises ApiError NOT_FOUND, or FAILED_PRECONDITION where nothing is deployed.
    """
    endpoint = self.get(name)
    by_id = {each["id"]: each for each in endpoint["deployedModels"]}
    shares = {each: share for each, share in endpoint["trafficSplit"].items() if share}
    if not shares:
      raise ApiError(
        "FAILED_PRECONDITION", f"{name}: no model is deployed to it; deploy one with :deployModel"
      )
    (own,) = random.choices(list(shares), list(shares.values()))
    model, number = _version_of(by_id[own])
    return by_id[own], find_version(self._registry_of(name.project), f"{model}@{number}")

  def reconcile(self) -> None:
    """Releases versions that a killed process marked as used by an endpoint, and did not deploy."""
    # Locked: a process that deploys now is between its mark and its deployment.
    with self._resources.locked():
      for project in {split(each["name"]).project for each in self.list()}:
        self._release_unused(project)

  def _release_unused(self, project: str) -> None:
    registry, deployments = self._registry_of(project), self.deployments(project)
    for version in [each for model in registry.names() for each in registry.versions(model)]:
      places = deployments.get((version.name, version.number), [])
      used = {place["endpoint"] for place in places}
      for endpoint in version.endpoints:
        # Other users of the registry have names of another form.
        if endpoint.startswith("projects/") and endpoint not in used:
          registry.release(endpoint, version.reference)


def _version_of(deployed: Mapping[str, Any]) -> tuple[str, int]:
  """Returns the name and number of a deployed model's version."""
  return split(deployed["model"]).id.partition("@")[0], int(deployed["modelVersionId"])


def _check_split(endpoint: Mapping[str, Any]) -> None:
  """Raises ApiError unless the shares of an endpoint's models are 100 % together, or none."""
  shares = endpoint["trafficSplit"]
  unknown = set(shares) - {each["id"] for each in endpoint["deployedModels"]}
  if unknown:
    raise invalid(f"trafficSplit: {min(unknown)[:70]!r} is not a deployed model of this endpoint")
  if sum(shares.values()) != (100 if shares else 0) or min(shares.values(), default=0) < 0:
    raise invalid("trafficSplit: the shares must be from 0 to 100, and 100 together")
