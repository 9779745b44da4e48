"""Sessions of browsers: a signed cookie that says which token somebody signed in with.

The cookie never has the token, but a keyed digest of it, so a token that is removed ends its
sessions, and a stolen cookie reveals none.
"""

import hmac
import os
import pathlib
import secrets
from typing import NamedTuple

from itsdangerous import BadData, URLSafeTimedSerializer

from dss_jax.storage.atomic import writing

SECONDS = 12 * 3600
KEY_FILE = "console.key"
_KEY_BYTES = 32
_MOST_ENDED = 10_000


class Session(NamedTuple):
  """Attributes:

  id: a random text; the tokens of the session's forms are made from it.
  token: the digest of the bearer token; "" before the sign-in, and where no token is needed.
  """

  id: str
  token: str


def new_session(token: str = "") -> Session:
  return Session(secrets.token_urlsafe(16), token)


class Sessions:
  """Writes and reads sessions with a key that only the server has.

  Attributes:
    cookie: the name of the cookie; servers on several ports of a machine share its cookies, and
      have different keys.
  """

  def __init__(self, key: bytes):
    self._key = key
    self.cookie = f"dss_console_{self._mac('cookie', '')[:8]}"
    self._serializer = URLSafeTimedSerializer(key, salt="session")
    # The ids of sessions that ended by signing out; a copy of their cookie is worth nothing.
    self._ended: dict[str, None] = {}

  def read(self, cookie: str | None) -> Session | None:
    """Returns the session of a cookie; None if it is forged, too old, ended or not there."""
    try:
      # A list of two texts, or it would not be signed.
      session = Session(*self._serializer.loads(cookie or "", max_age=SECONDS))
    except BadData:
      return None
    return None if session.id in self._ended else session

  def write(self, session: Session) -> str:
    """Returns a session as the value of its cookie."""
    return str(self._serializer.dumps(list(session)))

  def end(self, session: Session) -> None:
    """Ends a session, for as long as this server runs."""
    self._ended[session.id] = None
    if len(self._ended) > _MOST_ENDED:
      del self._ended[next(iter(self._ended))]

  def digest(self, token: str) -> str:
    """Returns what a session has of a bearer token."""
    return self._mac("token", token)

  def form_token(self, session: Session) -> str:
    """Returns what every form of a session must send, which no other site can know."""
    return self._mac("form", session.id)

  def _mac(self, purpose: str, text: str) -> str:
    return hmac.new(self._key, f"{purpose}:{text}".encode(), "sha256").hexdigest()


def read_key(root: pathlib.Path) -> bytes:
  """Returns the key under a server's root, which is made when it is first needed."""
  path = root / KEY_FILE
  with writing(path):
    # Nobody else may read it, not even while it is written.
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with open(handle, "r+b") as file:
      key = file.read()
      if len(key) != _KEY_BYTES:
        key = secrets.token_bytes(_KEY_BYTES)
        file.seek(0)
        file.truncate()
        file.write(key)
    return key
