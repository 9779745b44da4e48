"""Who may use a server: bearer tokens from the environment, and hosts without one."""

import hmac
import ipaddress
import os
from collections.abc import Sequence

from dss_jax.errors import UserError
from dss_jax.serving.errors import Refused

DEFAULT_TOKEN_ENV = "DSS_SERVE_TOKEN"
_MIN_TOKEN_CHARACTERS = 16


def is_loopback(host: str) -> bool:
  """Returns whether only this machine reaches the address."""
  if host == "localhost":
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def read_tokens(token_env: str, host: str) -> tuple[str, ...]:
  """Returns the tokens in the environment variable, separated by commas; () if it is not set.

  Raises:
    UserError: a token is too short to be a secret, or other machines could connect without one.
  """
  tokens = tuple(filter(None, map(str.strip, os.environ.get(token_env, "").split(","))))
  for token in tokens:
    check_token(token, f"--token-env {token_env}")
  if not tokens and not is_loopback(host):
    raise UserError(
      f"--host {host}: other machines could use the student without a token; set the environment"
      f" variable {token_env}, or leave out --host to serve this machine alone"
    )
  return tokens


def check_token(token: str, place: str) -> None:
  """Raises UserError for a token that is too short to be a secret, or no header can carry."""
  if len(token) < _MIN_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable():
    raise UserError(
      f"{place}: a token needs {_MIN_TOKEN_CHARACTERS} or more printable ASCII"
      ' characters; make one with `python -c "import secrets; print(secrets.token_urlsafe())"`'
    )


def find_token(authorization: str | None, tokens: Sequence[str]) -> int | None:
  """Returns which of the tokens an Authorization header has; compares in constant time."""
  scheme, _, given = (authorization or "").partition(" ")
  if scheme.lower() != "bearer":
    return None
  sent = given.strip().encode()
  matches = [hmac.compare_digest(sent, token.encode()) for token in tokens]
  return matches.index(True) if any(matches) else None


def refusal(authorization: str | None, host: str, tokens: Sequence[str]) -> Refused | None:
  """Returns why a request may not use the server; None if it may.

  Args:
    authorization, host: headers of the request.
    tokens: one of which it needs; () lets clients of this machine in.
  """
  if tokens:
    if find_token(authorization, tokens) is not None:
      return None
    return Refused(
      401,
      "give a token of this server: Authorization: Bearer TOKEN",
      headers={"www-authenticate": "Bearer"},
    )
  # A page of another site may resolve its own name to this machine.
  if is_loopback(_without_port(host.rpartition("@")[2])):
    return None
  return Refused(403, "without a token, only clients of this machine may use the server")


def _without_port(host: str) -> str:
  if host.startswith("["):
    return host[1:].partition("]")[0]
  return host.partition(":")[0]
