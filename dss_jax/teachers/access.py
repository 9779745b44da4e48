"""Access to a server: its URL, the key from the environment, and the proxy."""

import os
import urllib.parse
import urllib.request

from dss_jax.errors import UserError

DEFAULT_URL = "https://api.openai.com/v1"
DEFAULT_KEY_ENV = "OPENAI_API_KEY"
_MIN_KEY_CHARACTERS = 8


def checked_url(url: str) -> str:
  """Returns the URL without trailing slashes; raises UserError if invalid or with a secret."""
  try:
    parts = urllib.parse.urlsplit(url)
    host, _ = parts.hostname, parts.port
  except ValueError:
    parts, host = None, None
  if parts is None or parts.scheme not in ("http", "https") or not host:
    raise UserError("--teacher-url: not a valid URL; write it like http://HOST:PORT/v1")
  if parts.username or parts.password or parts.query or parts.fragment:
    # These parts may be a secret, so the message does not show them.
    raise UserError(
      f"--teacher-url with host {host}: contains a user name, password or query;"
      " give the key in an environment variable (--teacher-key-env)"
    )
  return url.rstrip("/")


def read_key(key_env: str, url: str) -> str:
  """Returns the key in the environment variable, or "" if the user's own server needs none.

  Raises:
    UserError: a required key is missing, or the value of the variable cannot be a key.
  """
  key = os.environ.get(key_env, "").strip()
  if not key:
    if url.startswith(DEFAULT_URL) or key_env != DEFAULT_KEY_ENV:
      raise UserError(
        f"--teacher at {url}: needs a key, and the environment variable {key_env} is not set;"
        " set it, or name another with --teacher-key-env"
      )
    return ""
  if len(key) < _MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
    raise UserError(
      f"--teacher-key-env {key_env}: the value is not a key (a key has {_MIN_KEY_CHARACTERS} or"
      " more printable ASCII characters and no spaces); set it again"
    )
  return key


def proxy_for(url: str) -> str | None:
  """Returns the proxy that the environment sets for the URL (HTTP_PROXY, HTTPS_PROXY, NO_PROXY)."""
  parts = urllib.parse.urlsplit(url)
  if urllib.request.proxy_bypass(parts.netloc):
    return None
  proxies = urllib.request.getproxies()
  return proxies.get(parts.scheme) or proxies.get("all")
