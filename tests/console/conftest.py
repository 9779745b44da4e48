import pytest

from dss_jax.jobs.api.access import Access, Caller
from tests.console.plain_browser import Browser
from tests.jobs.workplace import Workplace

TOKENS = {
  role: (f"token-of-{role}-16-letters", Caller(role, {"my-project": role}))
  for role in ("viewer", "editor", "admin")
}
TOKENS["stranger"] = ("token-of-stranger-16", Caller("stranger", {"other-project": "admin"}))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
  return Workplace(tmp_path_factory.mktemp("console"))


@pytest.fixture(scope="module")
def service(workplace):
  return workplace.open()


@pytest.fixture(scope="module")
def browser(service):
  """A browser at a console without tokens."""
  with Browser(service) as browser:
    yield browser


@pytest.fixture(scope="module")
def access():
  tokens, callers = zip(*TOKENS.values(), strict=True)
  return Access(tokens, callers)


@pytest.fixture
def guarded(service, access):
  """A browser at a console that asks for a token, not signed in yet."""
  with Browser(service, access) as browser:
    yield browser
