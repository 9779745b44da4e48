"""Operations: they are kept, listed and deleted, and answer under all three prefixes."""

from dss_jax.jobs.names import split
from dss_jax.jobs.resources import Resources

PARENT = "projects/sums/locations/us-central1/operations"


def test_operations(server):
  first = server.call("POST", "/endpoints", {"displayName": "a"})
  name = first["name"]
  assert name.startswith(f"{PARENT}/")
  assert first["metadata"]["@type"].endswith("v1.CreateEndpointOperationMetadata")
  assert first["metadata"]["genericMetadata"]["createTime"].endswith("Z")
  server.start()
  for prefix in ("/v1", "/v1beta1", "/ui"):
    assert server.call("GET", f"{prefix}/{name}") == first
  assert server.call("POST", f"/v1/{name}:wait", {"timeout": "1s"}) == first
  assert server.call("POST", f"/v1/{name}:cancel") == {}
  second = server.call("POST", "/endpoints", {"displayName": "b"})
  found = server.call("GET", f"/v1/{PARENT}")["operations"]
  assert [each["name"] for each in found] == [second["name"], name]
  page = server.call("GET", f"/v1/{PARENT}", pageSize=1)
  page = server.call("GET", f"/v1/{PARENT}", pageSize=1, pageToken=page["nextPageToken"])
  assert page == {"operations": [first]}
  assert server.call("DELETE", f"/v1/{name}") == {}
  server.call("GET", f"/ui/{name}", status=404)
  server.call("GET", f"/v1/{name.replace('sums', 'other')}", status=404)
  # Only operations are answered there.
  server.call("GET", "/ui/projects/sums/locations/us-central1/endpoints", status=404)


def test_old_operations_are_forgotten(server):
  names = [server.call("POST", "/endpoints", {})["name"] for _ in range(2)]
  resources = Resources(server.root)
  resources.change(
    split(names[0]),
    lambda value: value["metadata"]["genericMetadata"].update(updateTime="2020-01-01T00:00:00Z"),
  )
  server.start()
  server.call("GET", f"/v1/{names[0]}", status=404)
  server.call("GET", f"/v1/{names[1]}")
