"""A job server whose students write at once, for the tests of its routes."""

import json
import time

from starlette.testclient import TestClient

from dss_jax.jobs.api.access import Access, Caller
from dss_jax.jobs.api.app import make_app
from dss_jax.jobs.devices import Devices
from dss_jax.jobs.service import JobService
from dss_jax.jobs.settings import Settings
from tests.serving.conftest import EchoStudent

PARENT = "/v1/projects/sums/locations/us-central1"
VIEWER, EDITOR, ADMIN, STRANGER = (
  f"token-of-{who}-16" for who in ("viewer", "editor", "admin", "other")
)
TOKENS = {
  VIEWER: Caller("viewer", {"sums": "viewer"}),
  EDITOR: Caller("editor", {"sums": "editor"}),
  ADMIN: Caller("admin", {"sums": "admin"}),
  STRANGER: Caller("stranger", {"other": "admin"}),
}


class ApiServer:
  """A server under a folder, with a client of it; start again keeps what is on disk."""

  def __init__(self, root, *, tokens=None, **settings):
    self.root = root
    self.settings = Settings(buckets={"data": str(root / "bucket")}, **settings)
    self.tokens = tokens or {}
    self.loaded = []
    (root / "bucket").mkdir(exist_ok=True)
    self.client = None
    self.start()

  def start(self):
    self.stop()
    devices = {"default": Devices(platform="cpu", count=1)}
    self.service = JobService(self.root, self.settings, devices)
    self.student = EchoStudent()
    access = Access(list(self.tokens), list(self.tokens.values()))
    app = make_app(self.service, access, load=lambda version: self._load(version))
    self.client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    self.client.__enter__()

  def stop(self):
    if self.client is not None:
      self.client.__exit__(None, None, None)
      self.client = None

  def _load(self, version):
    self.loaded.append(version.reference)
    return self.student

  def register(self, name, project="sums", **record):
    """Registers a version of a model and returns it."""
    record = {"student": "small", "parameters": 7, "step": 300, "metrics": {"a": 0.5}, **record}
    return self.service.registry(project).register(name, record, fill)

  def call(self, method, path, body=None, *, token=None, status=200, **query):
    """Sends a request; checks its status and the form of its answer, and returns that."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    path = path if path.startswith(("/v1", "/ui")) else PARENT + path
    response = self.client.request(method, path, json=body, headers=headers, params=query)
    content = response.json()
    assert response.status_code == status, content
    if status != 200:
      error = content["error"]
      assert (error["code"], bool(error["status"]), "\n" in error["message"]) == (
        status, True, False
      )  # fmt: skip
      assert error["details"][0]["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    return content

  def wait(self, operation):
    """Returns what an operation answers once it is done."""
    deadline = time.monotonic() + 30
    while not operation["done"]:
      assert time.monotonic() < deadline
      time.sleep(0.005)
      operation = self.call("GET", f"/ui/{operation['name']}")
    return operation


def fill(folder):
  (folder / "weights").write_bytes(b"1234")


def audit(root):
  """Returns the lines of the audit log."""
  return [json.loads(line) for line in (root / "audit.jsonl").read_text().splitlines()]
