"""Sessions: signed, short-lived, and without the token."""

import os
import stat

import itsdangerous
import pytest

from dss_jax.console import session as sessions_module
from dss_jax.console.session import KEY_FILE, Session, Sessions, new_session, read_key


@pytest.fixture
def sessions():
  return Sessions(b"k" * 32)


def test_a_session_comes_back(sessions):
  session = new_session(sessions.digest("a-token"))
  assert sessions.read(sessions.write(session)) == session
  assert "a-token" not in sessions.write(session)


@pytest.mark.parametrize("cookie", [None, "", "x", "W10.x.y", "é"])
def test_what_is_no_session(sessions, cookie):
  assert sessions.read(cookie) is None


def test_a_forged_session_is_none(sessions):
  forged = Sessions(b"other" * 8).write(Session("id", sessions.digest("a-token")))
  assert sessions.read(forged) is None
  own = sessions.write(new_session())
  assert sessions.read(("A" if own[0] != "A" else "B") + own[1:]) is None


def test_a_session_expires(sessions, monkeypatch):
  cookie = sessions.write(new_session())
  issued = itsdangerous.TimestampSigner.get_timestamp
  late = sessions_module.SECONDS + 1
  monkeypatch.setattr(
    itsdangerous.TimestampSigner, "get_timestamp", lambda self: issued(self) + late
  )
  assert sessions.read(cookie) is None


def test_form_tokens_differ(sessions):
  one, other = new_session(), new_session()
  assert sessions.form_token(one) != sessions.form_token(other)
  assert sessions.form_token(one) == Sessions(b"k" * 32).form_token(one)


def test_the_key_is_made_once_and_secret(tmp_path):
  key = read_key(tmp_path)
  assert read_key(tmp_path) == key
  assert len(key) == 32
  assert stat.S_IMODE(os.stat(tmp_path / KEY_FILE).st_mode) == 0o600


def test_a_key_that_was_cut_is_made_anew(tmp_path):
  (tmp_path / KEY_FILE).write_bytes(b"short")
  assert len(read_key(tmp_path)) == 32
