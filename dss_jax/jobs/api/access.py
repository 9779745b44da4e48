"""Who may do what: tokens with a role in each project, and the log of what they did."""

import dataclasses
import json
import os
import pathlib
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import pydantic
import yaml

from dss_jax.errors import UserError
from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.store import now
from dss_jax.serving.access import check_token, find_token, is_loopback, refusal
from dss_jax.storage.atomic import writing
from dss_jax.storage.files import PathLike, read_text, reason

Role = Literal["viewer", "editor", "admin"]
DEFAULT_TOKEN_ENV = "DSS_JOBS_TOKEN"
TOKENS_FILE = "tokens.yaml"
AUDIT_FILE = "audit.jsonl"
ANY_PROJECT = "*"

_ROLES: tuple[Role, ...] = ("viewer", "editor", "admin")
# What changes nothing, though it is a POST, and what cannot be undone, though it is none.
_VIEWING = {"predict", "serverStreamingPredict", "countTokens", "generateContent",
            "streamGenerateContent", "wait"}  # fmt: skip
_DELETING = {"delete", "batchDelete", "deleteVersion"}
_VERB = re.compile(r":([A-Za-z]{1,40})$")
_MAX_LOGGED = 512


@dataclasses.dataclass(frozen=True)
class Caller:
  """Who sent a request.

  Attributes:
    name: of the token; never the token.
    roles: by project; ANY_PROJECT is every other one.
  """

  name: str
  roles: Mapping[str, Role]

  def may(self, role: Role, project: str) -> bool:
    """Returns whether the caller has a role, or a higher one, in a project."""
    own = self.roles.get(project) or self.roles.get(ANY_PROJECT)
    return own is not None and _ROLES.index(own) >= _ROLES.index(role)


class _Token(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra="forbid")

  name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}$")]
  token: str
  roles: Annotated[dict[str, Role], pydantic.Field(min_length=1)]


class _Tokens(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra="forbid")

  tokens: Annotated[list[_Token], pydantic.Field(min_length=1)]


class Access:
  """The tokens of a server; without one, the programs of this machine are its administrators."""

  def __init__(self, tokens: Sequence[str] = (), callers: Sequence[Caller] = ()):
    self._tokens = tokens
    self._callers = callers

  @property
  def needs_token(self) -> bool:
    """Whether requests need a token."""
    return bool(self._tokens)

  def caller(self, authorization: str | None, host: str) -> Caller:
    """Returns who sends a request with these headers; raises Refused for nobody we know."""
    refused = refusal(authorization, host, self._tokens)
    if refused is not None:
      raise refused
    found = find_token(authorization, self._tokens)
    return Caller("local", {ANY_PROJECT: "admin"}) if found is None else self._callers[found]

  def find(self, is_wanted: Callable[[str], bool]) -> Caller | None:
    """Returns the caller whose token is wanted, for those who do not send it each time."""
    for token, caller in zip(self._tokens, self._callers, strict=True):
      if is_wanted(token):
        return caller
    return None


def read_access(root: PathLike, file: PathLike | None, token_env: str, host: str) -> Access:
  """Reads the tokens of a file and of the environment.

  Args:
    file: by default ROOT/tokens.yaml, if it is there.
    token_env: the environment variable with administrators' tokens, separated by commas.
    host: the address that the server listens at.

  Raises:
    UserError: a token is wrong, others can read the file, or other machines could connect
      without a token.
  """
  given = [each.strip() for each in os.environ.get(token_env, "").split(",") if each.strip()]
  for token in given:
    check_token(token, f"--token-env {token_env}")
  callers = [
    Caller(f"{token_env}-{number + 1}", {ANY_PROJECT: "admin"}) for number in range(len(given))
  ]
  path = pathlib.Path(root) / TOKENS_FILE if file is None else pathlib.Path(file)
  for each in _read_tokens(path) if file is not None or path.exists() else ():
    given.append(each.token)
    callers.append(Caller(each.name, each.roles))
  if len(set(given)) < len(given):
    raise UserError(f"{path}: a token is there twice, or in {token_env}, too; give each its own")
  if not given and not is_loopback(host):
    raise UserError(
      f"--host {host}: other machines could use the server without a token; write {path} or set"
      f" {token_env}, or leave out --host to serve this machine alone"
    )
  return Access(given, callers)


def _read_tokens(path: pathlib.Path) -> list[_Token]:
  try:
    values = yaml.safe_load(read_text(path))
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
      raise UserError(f"{path}: other users of this machine can read it; chmod 600 {path}")
    tokens = _Tokens.model_validate(values).tokens
  # Of the error, the place alone: its text may have a token.
  except yaml.YAMLError:
    raise UserError(f"{path}: is not YAML; see docs/jobs.md") from None
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({reason(error)}); see docs/jobs.md") from None
  except pydantic.ValidationError as error:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "it"
    raise UserError(f"{path}: {place}: {first['msg']}; see docs/jobs.md") from None
  for each in tokens:
    check_token(each.token, f"{path}: {each.name}")
  return tokens


def needed_role(method: str, path: str) -> Role:
  """Returns the role that a request needs: viewers see and ask, editors change, admins delete."""
  if method in ("GET", "HEAD", "OPTIONS"):
    return "viewer"
  if method == "DELETE":
    return "admin"
  verb = found[1] if (found := _VERB.search(path)) else ""
  return "viewer" if verb in _VIEWING else "admin" if verb in _DELETING else "editor"


def check_role(caller: Caller, project: str, method: str, path: str) -> None:
  """Raises ApiError unless the caller may send this request."""
  role = needed_role(method, path)
  if not caller.may(role, project):
    raise ApiError(
      "PERMISSION_DENIED",
      f"{caller.name}: is no {role} of the project {project[:63]!r}, or there is no such project",
    )


class AuditLog:
  """JSON lines of who did what when; the file may be moved away at any time."""

  def __init__(self, path: PathLike):
    """Opens the log; raises UserError if it cannot be written."""
    self._path = os.fspath(path)
    with writing(self._path):
      os.close(self._open())

  def note(self, caller: str, method: str, resource: str, status: int) -> None:
    """Adds a line; in one write, so that lines of several processes do not mix."""
    values = {
      "time": now(),
      "caller": caller,
      "method": method[:16],
      "resource": resource[:_MAX_LOGGED],
      "status": status,
    }
    file = self._open()
    try:
      os.write(file, json.dumps(values).encode("ascii") + b"\n")
    finally:
      os.close(file)

  def _open(self) -> int:
    return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
