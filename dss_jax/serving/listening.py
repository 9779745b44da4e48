"""The socket that a server listens at."""

import contextlib
import socket
from collections.abc import Iterator

from dss_jax.errors import UserError
from dss_jax.storage.files import reason

BACKLOG = 2048


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
  """Binds the address at once, so that a wrong one is found before students are loaded."""
  try:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
  except OSError as error:
    raise UserError(f"--host {host}: {reason(error)}; give an address of this machine") from None
  with contextlib.closing(listener):
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      listener.bind(address)
    except OSError as error:
      raise UserError(f"--port {port}: {reason(error)}; give another --port, or 0") from None
    yield listener


def listening(listener: socket.socket) -> str:
  """Lets clients connect, though they are answered later; returns the server's URL."""
  host, port = listener.getsockname()[:2]
  listener.listen(BACKLOG)
  return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
