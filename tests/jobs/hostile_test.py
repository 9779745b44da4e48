"""Malformed and hostile requests to a server on a socket: each is refused, nothing leaks.

On a socket, since a test client would correct paths and headers before they arrive.
"""

import http.client
import json
import socket
import threading

import pytest
import uvicorn

from dss_jax.jobs.api.access import Access
from dss_jax.jobs.api.app import make_app
from tests.jobs.api_server import ADMIN, PARENT, STRANGER, TOKENS, VIEWER, ApiServer

SCRIPT = "<script>alert(1)</script>"
# Whatever a server could tell by mistake.
LEAKS = ("Traceback", "/root", "/tmp", "/home", "sqlite", "dss_jax/", ".py", "root:x:0", "weights")
EVIL_IDS = (
  "..", "../x", "..%2f..%2fetc%2fpasswd", "%2e%2e", "%2e%2e%2fx", "%252e%252e%252fx", "x%00y",
  "%00",
  "a%0d%0aX-Evil:1", "a'%20or%20'1'='1", "a;drop%20table%20resources", "%3Cscript%3E", "x" * 300,
  "%ff%fe", "~root", "$(id)", "a%20b", "-rf", "caf%C3%A9", "a@../b", "..%5c..%5cwin.ini", "{{7*7}}",
  "@", ":", "a@b@c",
)  # fmt: skip
KINDS = ("models", "endpoints", "operations", "batchPredictionJobs", "pipelineJobs", "tuningJobs")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  """An ApiServer whose application listens at a port, with tokens."""
  server = ApiServer(tmp_path_factory.mktemp("hostile"))
  server.register("sign")
  server.call("POST", "/endpoints", {"displayName": "x"}, endpointId="mine")
  server.stop()
  access = Access(list(TOKENS), list(TOKENS.values()))
  config = uvicorn.Config(
    make_app(server.service, access, load=server._load), port=0, log_level="critical",
    server_header=False,
  )  # fmt: skip
  running = uvicorn.Server(config)
  thread = threading.Thread(target=running.run)
  thread.start()
  while not running.started:
    assert thread.is_alive()
    thread.join(0.01)
  server.port = running.servers[0].sockets[0].getsockname()[1]
  before = files(server.root)
  yield server
  # Nothing was written beside what the server writes itself, and it still answers.
  assert files(server.root) == before
  assert send(server, "GET", f"{PARENT}/models/sign", None)[0] == 200
  running.should_exit = True
  thread.join()


def files(root):
  names = {str(path.relative_to(root)) for path in root.rglob("*")}
  return {name for name in names if "sqlite" not in name}


def send(server, method, path, body, token=ADMIN, **headers):
  """Returns status, headers and text of what the server answers to exactly this path."""
  connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
  content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
  headers = {name.replace("_", "-"): value for name, value in headers.items()}
  if token is not None:
    headers.setdefault("authorization", f"Bearer {token}")
  if content is not None:
    headers.setdefault("content-type", "application/json")
  connection.putrequest(method, path, skip_host="host" in headers)
  for name, value in headers.items():
    connection.putheader(name, value)
  if content is not None:
    connection.putheader("content-length", str(len(content)))
  connection.endheaders(content)
  response = connection.getresponse()
  text = response.read().decode()
  connection.close()
  return response.status, response.headers, text


def refused(
  server, method, path, body=None, statuses=(400, 401, 403, 404, 405, 413, 415), **headers
):
  """Sends a request, and checks that it is refused with one sentence that tells nothing."""
  status, answered, text = send(server, method, path, body, **headers)
  assert status in statuses, (status, text)
  assert answered["content-type"] == "application/json"
  assert answered["x-content-type-options"] == "nosniff"
  assert "x-evil" not in answered
  error = json.loads(text)["error"]
  assert set(error) == {"code", "message", "status", "details"}
  assert error["message"]
  assert "\n" not in error["message"]
  assert len(error["message"]) < 1000
  for leak in LEAKS:
    assert leak not in error["message"], error
  return error


@pytest.mark.parametrize("evil", EVIL_IDS)
@pytest.mark.parametrize("kind", KINDS)
def test_ids(kind, evil, server):
  refused(server, "GET", f"{PARENT}/{kind}/{evil}")
  refused(server, "DELETE", f"{PARENT}/{kind}/{evil}")


@pytest.mark.parametrize("evil", EVIL_IDS)
def test_projects_and_locations(evil, server):
  for place in (f"projects/{evil}/locations/us-central1", f"projects/sums/locations/{evil}"):
    refused(server, "GET", f"/v1/{place}/models")
    refused(server, "POST", f"/v1/{place}/endpoints", {})
    refused(server, "GET", f"/ui/{place}/operations/1")


@pytest.mark.parametrize("evil", EVIL_IDS)
def test_verbs_and_publishers(evil, server):
  refused(server, "POST", f"{PARENT}/endpoints/mine:{evil}", {"instances": [{"content": "x"}]})
  refused(server, "POST", f"{PARENT}/models/{evil}:mergeVersionAliases", {"versionAliases": ["ab"]})
  refused(server, "GET", f"/v1/publishers/google/models/{evil}")
  refused(server, "POST", f"{PARENT}/publishers/google/models/{evil}:predict", {})


BODIES = [
  b"", b"{", b"\xff\xfe", b"null", b"[]", b'"x"', b"7", b"[" * 50_000, b'{"a":' * 50_000,
  b'{"displayName": NaN}', b'{"displayName": 1e999}', b'{"displayName": "\\ud800"}',
  b'{"displayName": ' + b"9" * 5000 + b"}", b" " * (2**20 + 1), b"{}" + b"\0", b"PK\x03\x04",
  b"--x\r\ncontent-disposition: form-data\r\n\r\n--x--", b"<a/>", b"{'a': 1}",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_bodies(number, server):
  body = BODIES[number]
  refused(server, "POST", f"{PARENT}/models:upload", body)
  refused(server, "POST", f"{PARENT}/batchPredictionJobs", body)
  refused(server, "POST", f"{PARENT}/pipelineJobs", body)
  refused(server, "POST", f"{PARENT}/endpoints/mine:deployModel", body)


@pytest.mark.parametrize(
  "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x" * 500]
)
def test_types_that_a_form_of_another_site_could_send(kind, server):
  refused(server, "POST", f"{PARENT}/endpoints", {"displayName": "x"}, statuses=(415,),
          content_type=kind)  # fmt: skip


WRONG = [None, 7, 1e308, True, [], ["x"], {"a": {}}, "x" * 5000, {"__proto__": 1}, [[]] * 100]


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_types_in_every_field(wrong, server):
  model = PARENT.removeprefix("/v1/") + "/models/sign"
  io = {
    "inputConfig": {"gcsSource": {"uris": ["gs://data/x"]}},
    "outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://data/y"}},
  }
  bodies = {
    "/models:upload": [{"model": wrong}, {"model": {"artifactUri": wrong}},
                       {"model": {"artifactUri": "gs://data/x"}, "modelId": wrong},
                       {"model": {"artifactUri": "gs://data/x"}, "parentModel": wrong}],
    "/models/sign:mergeVersionAliases": [{"versionAliases": wrong}, {"versionAliases": [wrong]}],
    "/endpoints/mine:deployModel": [{"deployedModel": wrong}, {"deployedModel": {"model": wrong}}],
    "/endpoints/mine:undeployModel": [{"deployedModelId": wrong}],
    "/endpoints/mine:predict": [{"instances": wrong}, {"instances": [{"content": wrong}]}],
    "/batchPredictionJobs": [
      {"model": wrong, **io},
      {**io, "model": model, "inputConfig": wrong},
      {**io, "model": model, "inputConfig": {"gcsSource": {"uris": wrong}}},
      {**io, "model": model, "outputConfig": {"gcsDestination": {"outputUriPrefix": wrong}}},
    ],
    "/pipelineJobs": [{"runtimeConfig": wrong}, {"runtimeConfig": {"parameterValues": wrong}}],
    "/tuningJobs": [{"baseModel": wrong}, {"distillationSpec": wrong}],
  }  # fmt: skip
  for path, each in bodies.items():
    for body in each:
      refused(server, "POST", PARENT + path, body)


TEXT_FIELDS = [
  ("POST", "/models:upload", {"model": {"artifactUri": SCRIPT}}),
  ("POST", "/models:upload", {"model": {"artifactUri": "gs://data/x"}, "modelId": SCRIPT}),
  ("POST", "/models:upload", {"model": {"artifactUri": f"gs://{SCRIPT}/x"}}),
  ("PATCH", "/models/sign", {"labels": {SCRIPT: "x"}}),
  ("PATCH", "/models/sign", {"labels": {"x": SCRIPT}}),
  ("POST", "/models/sign:mergeVersionAliases", {"versionAliases": [SCRIPT]}),
  ("POST", "/endpoints/mine:deployModel", {"deployedModel": {"model": SCRIPT}}),
  ("POST", "/endpoints/mine:undeployModel", {"deployedModelId": SCRIPT}),
  ("PATCH", "/endpoints/mine", {"trafficSplit": {SCRIPT: 100}}),
  ("POST", "/pipelineJobs", {"displayName": SCRIPT, "templateUri": SCRIPT}),
  ("POST", "/tuningJobs", {"baseModel": SCRIPT}),
]


@pytest.mark.parametrize("number", range(len(TEXT_FIELDS)))
def test_script_in_text(number, server):
  method, path, body = TEXT_FIELDS[number]
  refused(server, method, PARENT + path, body)


def test_script_in_a_name_is_data(server):
  """What may be any text comes back as JSON, which no browser runs."""
  body = {"displayName": SCRIPT, "description": SCRIPT}
  status, headers, text = send(server, "PATCH", f"{PARENT}/endpoints/mine", body)
  assert (status, json.loads(text)["displayName"]) == (200, SCRIPT)
  assert headers["content-type"] == "application/json"
  assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


QUERIES = [
  "filter=%22", "filter=((((((((((((((((((((((((((((((((", "filter=display_name=",
  "filter=x.y.z%3D1",
  "filter=display_name%3A" + "*" * 3000, "filter=" + "a" * 5000, "filter=create_time%3E1",
  "filter=%00", "filter=display_name%3D%22x", "filter=NOT", "filter=OR", "filter=labels%3Dx",
  "filter=__class__%3D1", "filter=1%3D1", "filter=a'%20or%201%3D1--",
  "pageSize=-1", "pageSize=x", "pageSize=1e3", "pageSize=99999999999999999999", "pageSize=%00",
  "pageToken=x", "pageToken=" + "A" * 5000, "pageToken=%00", "pageToken=W10", "pageToken=../../x",
  "orderBy=x", "orderBy=create_time%20up", "orderBy=;drop%20table", "orderBy=" + "a," * 500,
]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("kind", ["models", "endpoints"])
def test_queries(kind, query, server):
  if "display_name%3A***" in query:
    # Thousands of wildcards are one, quickly.
    assert send(server, "GET", f"{PARENT}/{kind}?{query}", None)[0] == 200
  else:
    refused(server, "GET", f"{PARENT}/{kind}?{query}", statuses=(400,))


@pytest.mark.parametrize(
  "authorization",
  ["", "Bearer", "Bearer ", "Bearer x", f"Basic {ADMIN}", ADMIN, f"Bearer {ADMIN[:-1]}",
   f"Bearer {ADMIN}x", f"Bearer {ADMIN.upper()}", "Bearer " + "x" * 5000, "Bearer \xfc",
   f"Bearer {ADMIN},{ADMIN}", "Bearer ../../tokens.yaml", "Bearer null", "Bearer *"],
)  # fmt: skip
def test_tokens(authorization, server):
  error = refused(
    server, "GET", f"{PARENT}/models/sign", statuses=(401,), token=None,
    authorization=authorization.encode("latin-1"),
  )  # fmt: skip
  assert error["status"] == "UNAUTHENTICATED"
  assert ADMIN not in error["message"]


OTHERS = [
  ("GET", "/v1/projects/other/locations/us-central1/models/sign", VIEWER),
  ("POST", "/v1/projects/other/locations/us-central1/endpoints", ADMIN),
  ("POST", "/v1/projects/other/locations/us-central1/pipelineJobs", ADMIN),
  ("GET", "/v1/projects/*/locations/us-central1/models", ADMIN),
  ("GET", "/v1/projects/-/locations/us-central1/models", ADMIN),
  ("GET", f"{PARENT}/models/sign", STRANGER),
  ("POST", f"{PARENT}/endpoints/mine:predict", STRANGER),
  ("POST", f"{PARENT}/endpoints", VIEWER),
  ("DELETE", f"{PARENT}/models/sign", VIEWER),
  ("DELETE", f"{PARENT}/models/sign@1:deleteVersion", VIEWER),
  ("POST", f"{PARENT}/pipelineJobs:batchDelete", VIEWER),
]


@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_what_others_may_not_do(number, server):
  method, path, token = OTHERS[number]
  error = refused(server, method, path, {} if method == "POST" else None, statuses=(403,),
                  token=token)  # fmt: skip
  assert error["status"] == "PERMISSION_DENIED"


def test_names_of_other_projects_in_bodies(server):
  other = "projects/other/locations/us-central1"
  for path, body in (
    ("/endpoints/mine:deployModel", {"deployedModel": {"model": f"{other}/models/x"}}),
    ("/models:upload", {"model": {}, "parentModel": f"{other}/models/x"}),
    ("/batchPredictionJobs", {
      "model": f"{other}/models/x",
      "inputConfig": {"gcsSource": {"uris": ["gs://data/x"]}},
      "outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://data/y"}},
    }),
    ("/pipelineJobs:batchDelete", {"names": [f"{other}/pipelineJobs/x"]}),
    ("/pipelineJobs:batchCancel", {"names": [f"{other}/pipelineJobs/x"]}),
  ):  # fmt: skip
    refused(server, "POST", PARENT + path, body, statuses=(400, 403))


RAW = [
  b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n",
  b"GET /v1/../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n",
  b"POST /v1 HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
  b"POST /v1 HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
  b"GET /v1 HTTP/9.9\r\nhost: x\r\n\r\n", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
  b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 100_000 + b"\r\n\r\n", b"\0" * 1000,
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(RAW)))
def test_what_is_no_request(number, server):
  with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
    connection.sendall(RAW[number])
    connection.shutdown(socket.SHUT_WR)
    try:
      answer = connection.recv(65536)
    except ConnectionResetError:
      answer = b""
  line = answer.partition(b"\r\n")[0]
  assert not line or line.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
  assert b"Traceback" not in answer
