import pytest

from tests.jobs.api_server import TOKENS, ApiServer


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
