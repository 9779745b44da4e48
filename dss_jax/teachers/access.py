"""How a server is reached: its URL, the key from the environment, a proxy on the way."""

import os
import urllib.parse
import urllib.request

from dss_jax.errors import UserError

DEFAULT_URL = "https://api.openai.com/v1"
DEFAULT_KEY_ENV = "OPENAI_API_KEY"
_SHORTEST_KEY = 8


def checked_url(url: str) -> str:
  """The URL without slashes at its end; UserError where it is none, or carries a secret."""
  try:
    parts = urllib.parse.urlsplit(url)
    host, _ = parts.hostname, parts.port
  except ValueError:
    parts, host = None, None
  if parts is None or parts.scheme not in ("http", "https") or not host:
    raise UserError("--teacher-url: is no URL; write it like http://HOST:PORT/v1")
  if parts.username or parts.password or parts.query or parts.fragment:
    # Not shown: what stands there may be a secret.
    raise UserError(
      f"--teacher-url with host {host}: carries a user name, password or query;"
      " give the key in an environment variable (--teacher-key-env)"
    )
  return url.rstrip("/")


def key_in(key_env: str, url: str) -> str:
  """The key that the variable holds; "" where a server of one's own needs none.

  Raises:
    UserError: there is no key where one is needed, or what the variable holds cannot be one.
  """
  key = os.environ.get(key_env, "").strip()
  if not key:
    if url.startswith(DEFAULT_URL) or key_env != DEFAULT_KEY_ENV:
      raise UserError(
        f"--teacher at {url}: needs a key, and the environment variable {key_env} is not set;"
        " set it, or name another with --teacher-key-env"
      )
    return ""
  if len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
    raise UserError(
      f"--teacher-key-env {key_env}: holds no key (a key has {_SHORTEST_KEY} or more printable"
      " characters without spaces); set it again"
    )
  return key


def proxy_for(url: str) -> str | None:
  """The proxy that the environment names for the URL (HTTP_PROXY, HTTPS_PROXY, NO_PROXY)."""
  parts = urllib.parse.urlsplit(url)
  if urllib.request.proxy_bypass(parts.netloc):
    return None
  proxies = urllib.request.getproxies()
  return proxies.get(parts.scheme) or proxies.get("all")
