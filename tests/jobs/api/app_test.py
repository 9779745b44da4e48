"""The application: tokens, roles, projects, the audit log, headers, and errors without secrets."""

import pytest

from dss_jax.errors import UserError
from dss_jax.jobs import google_errors
from dss_jax.jobs.api_error import ApiError
from dss_jax.serving.errors import QueueFull, Refused
from tests.jobs.api_server import ADMIN, EDITOR, PARENT, STRANGER, VIEWER, ApiServer, audit


def test_roles(guarded):
  guarded.register("sign")
  for token in (VIEWER, EDITOR, ADMIN):
    assert guarded.call("GET", "/models/sign", token=token)["displayName"] == "sign"
  for token, status in ((None, 401), ("a-token-of-nobody-16", 401), (STRANGER, 403)):
    guarded.call("GET", "/models/sign", token=token, status=status)
  guarded.call("POST", "/endpoints", {}, token=VIEWER, status=403)
  guarded.call("POST", "/endpoints", {}, token=EDITOR, endpointId="mine")
  guarded.call("DELETE", "/endpoints/mine", token=EDITOR, status=403)
  guarded.call("DELETE", "/endpoints/mine", token=ADMIN)
  # Who has no role in the project does not learn whether something is there.
  denied = [
    guarded.call("GET", f"/models/{name}", token=STRANGER, status=403)["error"]["message"]
    for name in ("sign", "none")
  ]
  assert denied[0] == denied[1]
  assert guarded.call("GET", "/v1/publishers/google/models/t5-small", token=STRANGER)
  guarded.call("GET", "/v1/publishers/google/models/t5-small", status=401)
  response = guarded.client.get(f"{PARENT}/models")
  assert response.headers["www-authenticate"] == "Bearer"
  assert guarded.client.get("/healthz").text == "ok\n"


def test_a_viewer_may_ask_a_student(guarded):
  guarded.register("sign")
  model = PARENT.removeprefix("/v1/") + "/models/sign"
  body = {"deployedModel": {"model": model}}
  path = "/v1/" + guarded.call("POST", "/endpoints", {}, token=EDITOR)["response"]["name"]
  guarded.call("POST", f"{path}:deployModel", body, token=VIEWER, status=403)
  operation = guarded.call("POST", f"{path}:deployModel", body, token=EDITOR)
  while not operation["done"]:
    operation = guarded.call("GET", f"/ui/{operation['name']}", token=VIEWER)
  body = {"instances": [{"content": "x"}]}
  assert guarded.call("POST", f"{path}:predict", body, token=VIEWER)["predictions"]
  guarded.call("POST", f"{path}:predict", body, token=STRANGER, status=403)


def test_every_request_is_in_the_log(guarded):
  guarded.call("GET", "/models", token=VIEWER, pageSize=1)
  guarded.call("DELETE", "/models/x", token=EDITOR, status=403)
  guarded.call("GET", "/models", token="a-secret-of-somebody", status=401)
  guarded.client.get("/healthz")
  lines = audit(guarded.root)
  assert [(each["caller"], each["method"], each["status"]) for each in lines] == [
    ("viewer", "GET", 200), ("editor", "DELETE", 403), ("-", "GET", 401)
  ]  # fmt: skip
  assert lines[1]["resource"] == f"{PARENT}/models/x"
  text = (guarded.root / "audit.jsonl").read_text()
  assert not any(secret in text for secret in (VIEWER, EDITOR, "a-secret-of-somebody"))


def test_projects_that_the_operator_did_not_name(tmp_path):
  server = ApiServer(tmp_path, projects=("sums",))
  server.call("GET", "/models")
  server.call("GET", "/v1/projects/other/locations/us-central1/models", status=404)
  server.stop()


def test_headers_keep_browsers_from_reading_more_into_an_answer(server):
  for path in (f"{PARENT}/models", f"{PARENT}/models/none", "/none", "/healthz"):
    headers = server.client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers


@pytest.mark.parametrize(
  ("headers", "status"),
  [
    ({"host": "127.0.0.1:8080"}, 200),
    ({"host": "evil.example"}, 403),
    ({"origin": "http://evil.example"}, 403),
    ({"origin": "null"}, 403),
    ({"origin": "http://127.0.0.1"}, 200),
    ({"origin": "http://127.0.0.1:9000"}, 403),
  ],
)
def test_pages_of_other_sites_may_not_use_the_server(headers, status, server):
  assert server.client.get(f"{PARENT}/models", headers=headers).status_code == status


@pytest.mark.parametrize(
  ("method", "path", "status"),
  [
    ("GET", "/v1", 404),
    ("GET", "/v1/", 404),
    ("GET", "/v2/projects/sums/locations/us-central1/models", 404),
    ("GET", f"{PARENT}/models/", 404),
    ("GET", f"{PARENT}/planets", 404),
    ("GET", f"{PARENT}/models/x/y", 404),
    ("GET", PARENT.replace("/v1/", "/v1//"), 404),
    ("GET", f"{PARENT}/operations/1/x", 404),
    ("PUT", f"{PARENT}/models/x", 405),
    ("POST", f"{PARENT}/models", 405),
    ("POST", "/v1/publishers/google/models/t5-small", 404),
    ("GET", "/", 404),
    ("BREW", f"{PARENT}/models", 405),
  ],
)
def test_paths_and_methods_that_there_are_not(method, path, status, server):
  response = server.client.request(method, path, json={} if method == "POST" else None)
  error = response.json()["error"]
  assert (response.status_code, error["code"]) == (status, status)
  assert error["status"] == {404: "NOT_FOUND", 405: "UNIMPLEMENTED"}[status]
  assert error["details"][0]["reason"]


def test_a_fault_says_nothing_of_the_program(server, monkeypatch):
  def fail(*arguments):
    raise ValueError(f"a secret of {server.root}")

  monkeypatch.setattr(server.service, "registry", fail)
  error = server.call("GET", "/models", status=500)["error"]
  assert (error["status"], error["message"]) == ("INTERNAL", "the server failed; its log says why")


def test_errors_have_googles_form(server):
  for error, code, status, reason in (
    (ApiError("ABORTED", "x"), 409, "ABORTED", "ABORTED"),
    (ApiError("FAILED_PRECONDITION", "x"), 400, "FAILED_PRECONDITION", "FAILED_PRECONDITION"),
    (ApiError("NOT_FOUND", "x"), 404, "NOT_FOUND", "RESOURCE_NOT_FOUND"),
    (QueueFull(3), 429, "RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED"),
    (Refused(413, "x"), 413, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    (TimeoutError(), 504, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
    (ZeroDivisionError("secret"), 500, "INTERNAL", "INTERNAL"),
  ):
    body = google_errors.body(google_errors.refused(error, server.service))["error"]
    assert (body["code"], body["status"], body["details"][0]["reason"]) == (code, status, reason)
    assert "secret" not in body["message"]
  assert google_errors.failure(QueueFull(3), server.service).grpc_code == 8
  assert google_errors.failure(ZeroDivisionError(), server.service).grpc_code == 13


def test_errors_do_not_say_where_files_are(tmp_path):
  server = ApiServer(tmp_path, registry=str(tmp_path / "elsewhere"))
  message = (
    f"{tmp_path}/bucket/rows.jsonl:1: and {tmp_path}/elsewhere/sums: and {tmp_path}/jobs: no"
  )
  found = google_errors.refused(UserError(message), server.service)
  assert str(found) == "gs://data/rows.jsonl:1: and REGISTRY/sums: and ROOT/jobs: no"
  server.stop()
