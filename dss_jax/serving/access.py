"""Who may use a server: bearer tokens from the environment, and hosts without one."""

import hmac
import ipaddress
import os
from collections.abc import Sequence

from dss_jax.errors import UserError

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
    if len(token) < _MIN_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable():
      raise UserError(
        f"--token-env {token_env}: a token needs {_MIN_TOKEN_CHARACTERS} or more printable ASCII"
        ' characters; make one with `python -c "import secrets; print(secrets.token_urlsafe())"`'
      )
  if not tokens and not is_loopback(host):
    raise UserError(
      f"--host {host}: other machines could use the student without a token; set the environment"
      f" variable {token_env}, or leave out --host to serve this machine alone"
    )
  return tokens


def is_allowed(authorization: str | None, tokens: Sequence[str]) -> bool:
  """Returns whether an Authorization header has one of the tokens; compares in constant time."""
  if not tokens:
    return True
  scheme, _, given = (authorization or "").partition(" ")
  if scheme.lower() != "bearer":
    return False
  matches = [hmac.compare_digest(given.strip().encode(), token.encode()) for token in tokens]
  return any(matches)
