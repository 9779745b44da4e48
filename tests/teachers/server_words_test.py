"""What servers say when they refuse: words in every form, and waits."""

import email.utils
import json
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dss_jax.teachers.server_words import stated_wait, words_of


@pytest.mark.parametrize(
  ("body", "words"),
  [
    ({"error": {"message": "no\nthanks", "code": 400}}, "no thanks"),
    ([{"error": {"code": 400, "message": "Cannot find field."}}], "Cannot find field."),
    ({"detail": "too long"}, "too long"),
    ({"detail": [{"loc": ["body", "stop"], "msg": "not permitted", "type": "x"}]},
     "not permitted; body; stop"),
    ({"object": "error", "message": "System role not supported", "param": None},
     "System role not supported"),
    ({"error": "plain"}, "plain"),
    ({"errors": [{"message": "one"}, {"message": "two"}]}, "one; two"),
    ({"error": {"message": "Provider returned error", "metadata": {"raw": "quota"}}},
     "Provider returned error; quota"),
    ({"message": "same", "error": {"message": "same"}}, "same"),
    ({"code": 7, "why": "odd form"}, '{"code": 7, "why": "odd form"}'),
    ({}, ""), ([], ""), (None, ""), ("text", "text"), (7, "7"),
  ],
)  # fmt: skip
def test_words_of_json(body, words):
  assert words_of(json.dumps(body).encode()) == words


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"", ""),
    (b"upstream error\r\n", "upstream error"),
    (b"<html><head><title>502 Bad\nGateway</title></head>x</html>", "502 Bad Gateway"),
    (b'{"error": {"mess', '{"error": {"mess'),
    ("\x1b[31mred \u202eevil\u2069\x07".encode(), "[31mred evil"),
    (b"\xff\xfe", "\ufffd\ufffd"),
    (b"x" * 1000, "x" * 297 + "..."),
  ],
)
def test_words_of_other_texts(content, words):
  assert words_of(content) == words


NOW = 1_900_000_000.0


@pytest.mark.parametrize(
  ("headers", "body", "seconds"),
  [
    ({"retry-after": "7"}, "", 7),
    ({"retry-after": "1.5", "retry-after-ms": "250"}, "", 0.25),
    ({"retry-after": email.utils.formatdate(NOW + 90, usegmt=True)}, "", 90),
    ({"retry-after": email.utils.formatdate(NOW - 90, usegmt=True)}, "", 0),
    ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-remaining-requests": "0"}, "", 1),
    ({"x-ratelimit-reset-tokens": "6m0.5s", "x-ratelimit-remaining-tokens": "0",
      "x-ratelimit-reset-requests": "9h", "x-ratelimit-remaining-requests": "3"}, "", 360.5),
    ({"x-ratelimit-reset": str(int(NOW) + 20)}, "", 20),
    ({"x-ratelimit-reset": str(int(NOW + 20) * 1000)}, "", 20),
    ({"anthropic-ratelimit-tokens-reset": "2030-03-17T17:46:50Z"}, "", 10),
    ({"retry-after": "junk"}, "wait 30 seconds", 30),
    ({}, "Rate limit reached. Please try again in 25 s. Visit ...", 25),
    ({}, "Please retry after 1m2.5s.", 62.5),
    ({}, "Try again in 250ms", 0.25),
    ({}, "please wait for 2 minutes", 120),
    ({}, [{"error": {"details": [{"@type": "RetryInfo", "retryDelay": "25.5s"}]}}], 25.5),
    ({}, "Try again in 2 meters", None),
    ({}, "You waited 30 s", None),
    ({"retry-after": "nan"}, "", None),
    ({"retry-after": "inf"}, "", None),
    ({"retry-after": "-3"}, "", 0),
  ],
)  # fmt: skip
def test_stated_waits(headers, body, seconds, monkeypatch):
  monkeypatch.setattr(time, "time", lambda: NOW)
  content = body if isinstance(body, str) else json.dumps(body)
  assert stated_wait(headers, content.encode()) == (
    None if seconds is None else pytest.approx(seconds)
  )


HEADERS = st.dictionaries(
  st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset", "ratelimit-reset-a"]),
  st.text(max_size=20) | st.sampled_from(["1e999", "-1", "Mon, 99", "9" * 40, "0001-01-01", "1m"]),
)


@settings(deadline=None)
@given(content=st.binary(max_size=200) | st.text(max_size=99).map(str.encode), headers=HEADERS)
def test_any_body_gives_one_clean_line(content, headers):
  words = words_of(content)
  assert len(words) <= 300
  assert all(c == "\ufffd" or unicodedata.category(c)[0] != "C" for c in words)
  wait = stated_wait(headers, content)
  assert wait is None or 0 <= wait < float("inf")
