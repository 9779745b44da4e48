"""Tokens, their roles, and the log of what they did."""

import json
import os
import pathlib

import pytest

from dss_jax.errors import UserError
from dss_jax.jobs.api.access import AuditLog, Caller, check_role, needed_role, read_access
from dss_jax.jobs.api_error import ApiError
from dss_jax.serving.errors import Refused

TOKEN, OTHER = "a-token-of-20-letters", "another-token-of-24-chars"
FILE = f"""
tokens:
- name: ci
  token: {TOKEN}
  roles: {{sums: editor, "*": viewer}}
- name: dashboard
  token: {OTHER}
  roles: {{sums: viewer}}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
  monkeypatch.delenv("DSS_JOBS_TOKEN", raising=False)

  def write(text, mode=0o600):
    path = tmp_path / "tokens.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path

  return write


def read(tmp_path, host="127.0.0.1", file=None):
  return read_access(tmp_path, file, "DSS_JOBS_TOKEN", host)


def test_tokens_have_roles(tmp_path, write):
  write(FILE)
  access = read(tmp_path, "0.0.0.0")
  caller = access.caller(f"Bearer {TOKEN}", "anywhere")
  assert (caller.name, caller.may("editor", "sums"), caller.may("admin", "sums")) == (
    "ci",
    True,
    False,
  )
  assert (caller.may("viewer", "other"), caller.may("editor", "other")) == (True, False)
  other = access.caller(f"bearer  {OTHER} ", "anywhere")
  assert (other.may("viewer", "sums"), other.may("viewer", "other")) == (True, False)


@pytest.mark.parametrize(
  "authorization", [None, "", "Bearer", f"Basic {TOKEN}", "Bearer x", f"Bearer {TOKEN}x", TOKEN]
)
def test_others_are_not_let_in(authorization, tmp_path, write):
  write(FILE)
  with pytest.raises(Refused, match="give a token") as caught:
    read(tmp_path).caller(authorization, "127.0.0.1")
  assert caught.value.status == 401


def test_tokens_of_the_environment_are_administrators(tmp_path, write, monkeypatch):
  monkeypatch.setenv("DSS_JOBS_TOKEN", f"{OTHER}x, {TOKEN}x")
  write(FILE)
  access = read(tmp_path)
  assert access.caller(f"Bearer {TOKEN}x", "") == Caller("DSS_JOBS_TOKEN-2", {"*": "admin"})
  assert access.caller(f"Bearer {TOKEN}", "").name == "ci"


def test_without_tokens_this_machine_alone_is_let_in(tmp_path, write):
  access = read(tmp_path)
  for host in ("127.0.0.1:8000", "localhost", "[::1]:8000"):
    assert access.caller(None, host).may("admin", "any")
  for host in ("evil.example", "127.0.0.1.evil.example", "10.0.0.7", ""):
    with pytest.raises(Refused, match="only clients of this machine") as caught:
      access.caller(None, host)
    assert caught.value.status == 403


@pytest.mark.parametrize(
  ("text", "mode", "message"),
  [
    (FILE, 0o644, "other users of this machine can read it; chmod 600"),
    (FILE.replace(TOKEN, "short-secret"), 0o600, "ci: a token needs 16"),
    (FILE.replace(OTHER, TOKEN), 0o600, "a token is there twice"),
    (FILE.replace("editor", "owner"), 0o600, "tokens.0.roles.sums: Input should be 'viewer'"),
    (FILE.replace("name: ci", "name: 'c i'"), 0o600, "tokens.0.name"),
    (FILE.replace("token:", "tokken:", 1), 0o600, "tokens.0.token"),
    ("tokens: [", 0o600, "is not YAML"),
    (f"- {TOKEN}", 0o600, "it: Input should be"),
    ("", 0o600, "it: Input should be"),
    ("tokens: []", 0o600, "tokens: List should have at least 1"),
  ],
)
def test_wrong_files(text, mode, message, tmp_path, write):
  path = write(text, mode)
  with pytest.raises(UserError) as caught:
    read(tmp_path)
  assert str(caught.value).startswith(str(path))
  assert message in str(caught.value)
  assert TOKEN not in str(caught.value)
  assert "short-secret" not in str(caught.value)


def test_the_documentations_file(tmp_path, write):
  page = pathlib.Path(__file__).resolve().parents[3] / "docs" / "jobs_api.md"
  text = page.read_text().partition("```yaml\n")[2].partition("```")[0]
  write(text)
  caller = read(tmp_path).caller("Bearer another-secret-of-16-letters", "")
  assert (caller.may("editor", "my-project"), caller.may("editor", "other")) == (True, False)


def test_other_machines_need_a_token(tmp_path, write):
  with pytest.raises(UserError, match=r"--host 0\.0\.0\.0: other machines could use the server"):
    read(tmp_path, "0.0.0.0")
  with pytest.raises(UserError, match=r"none\.yaml"):
    read(tmp_path, file=tmp_path / "none.yaml")


@pytest.mark.parametrize(
  ("method", "path", "role"),
  [
    ("GET", "/pipelineJobs", "viewer"),
    ("POST", "/endpoints/1:predict", "viewer"),
    ("POST", "/pipelineJobs", "editor"),
    ("POST", "/pipelineJobs/1:cancel", "editor"),
    ("PATCH", "/models/a", "editor"),
    ("POST", "/predict", "editor"),
    ("DELETE", "/models/a", "admin"),
    ("DELETE", "/models/a:predict", "admin"),
    ("PUT", "/models/a", "editor"),
    ("POST", "/models/a@1:deleteVersion", "admin"),
    ("POST", "/pipelineJobs:batchDelete", "admin"),
  ],
)
def test_needed_roles(method, path, role):
  assert needed_role(method, path) == role
  caller = Caller("ci", {"sums": role})
  check_role(caller, "sums", method, path)
  with pytest.raises(ApiError, match=r"is no .* or there is no such project") as caught:
    check_role(caller, "other", method, path)
  assert caught.value.status == 403


def test_the_log_has_a_line_for_each_request(tmp_path):
  path = tmp_path / "audit.jsonl"
  log = AuditLog(path)
  log.note("ci", "GET", "/v1/x\n\u202e" + "y" * 1000, 200)
  os.rename(path, tmp_path / "audit.1")
  log.note("ci", "DELETE", "/v1/y", 403)
  assert path.stat().st_mode & 0o777 == 0o600
  line = (tmp_path / "audit.1").read_text()
  assert line.count("\n") == 1
  first = json.loads(line)
  assert (first["caller"], first["method"], first["status"]) == ("ci", "GET", 200)
  assert first["time"].endswith("Z")
  assert len(first["resource"]) == 512
  assert json.loads(path.read_text())["status"] == 403
