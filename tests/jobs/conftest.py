import pytest
from starlette.testclient import TestClient

from dss_jax.jobs.api.access import Access
from dss_jax.jobs.api.app import make_app
from tests.jobs.api_server import TOKENS, ApiServer
from tests.jobs.workplace import Workplace


@pytest.fixture
def server(tmp_path):
  server = ApiServer(tmp_path)
  yield server
  server.stop()


@pytest.fixture
def guarded(tmp_path):
  """A server that asks for tokens."""
  server = ApiServer(tmp_path, tokens=TOKENS)
  yield server
  server.stop()


@pytest.fixture
def workplace(tmp_path):
  return Workplace(tmp_path)


@pytest.fixture
def service(workplace):
  return workplace.open()


@pytest.fixture
def client(service):
  """A client of the whole application, without a queue behind it."""
  app = make_app(service, Access())
  with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
    yield client
