"""Endpoints and the registry agree, whoever is killed when."""

import random
import subprocess
import sys
import time

from dss_jax.jobs.names import Name
from dss_jax.jobs.resources import Resources
from dss_jax.jobs.students.endpoints import Endpoints
from dss_jax.student.registry import Registry

# Deploys and undeploys versions for ever.
WRITER = """
import pathlib, random, sys
from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.students.endpoints import Endpoints
from dss_jax.jobs.names import Name
from dss_jax.jobs.resources import Resources
from dss_jax.student.registry import Registry

root = pathlib.Path(sys.argv[1])
registry = Registry(root / "registry")
endpoints = Endpoints(Resources(root), lambda project: registry)
print("ready", flush=True)
while True:
  name = Name("sums", "us-central1", "endpoints", random.choice("ab"))
  version = registry.version(f"sign@{random.choice('12')}")
  deployed = endpoints.get(name)["deployedModels"]
  try:
    if len(deployed) < 3:
      endpoints.deploy(name, version, model="projects/sums/locations/us-central1/models/sign")
    else:
      gone, kept = random.sample(deployed, 2)
      endpoints.undeploy(name, gone["id"], {kept["id"]: 100})
  except ApiError:
    # The other writer was faster.
    pass
"""


def test_a_deployed_version_is_marked_and_no_other(tmp_path):
  registry = Registry(tmp_path / "registry")
  for _ in range(2):
    registry.register("sign", {}, lambda folder: (folder / "weights").write_bytes(b"1"))
  endpoints = Endpoints(Resources(tmp_path), lambda project: registry)
  for own in "ab":
    endpoints.create(Name("sums", "us-central1", "endpoints", own), {})
  random.seed(3)
  deployments = 0
  for _ in range(4):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
      assert writer.stdout.readline() == b"ready\n"
    time.sleep(random.uniform(0.1, 0.5))
    for writer in writers:
      # None has ended by an error.
      assert writer.poll() is None
      writer.kill()
      writer.wait()
      writer.stdout.close()
    # As the next server does.
    endpoints.reconcile()
    found = endpoints.deployments("sums")
    for version in registry.versions("sign"):
      places = found.get((version.name, version.number), [])
      assert set(version.endpoints) == {place["endpoint"] for place in places}
      deployments += len(places)
    for endpoint in endpoints.list("sums"):
      ids = {each["id"] for each in endpoint["deployedModels"]}
      assert set(endpoint["trafficSplit"]) <= ids
      assert sum(endpoint["trafficSplit"].values()) == 100
  assert deployments > 4
