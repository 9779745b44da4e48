"""What a server says when it refuses a request: its words, and how long it asks to wait.

Servers and the gateways before them write errors in many forms: OpenAI's {"error": {"message"}}, an
array of it (Gemini), {"detail"} (FastAPI), plain text, a page of HTML.
"""

import datetime
import email.utils
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

_MAX_CHARACTERS = 300
# The keys that hold a message, the most specific first.
_MESSAGE_KEYS = ("message", "msg", "detail", "details", "error", "errors", "description", "title")
# What gateways add: the words of the server behind them, and the fields that they are about.
_FURTHER_KEYS = ("metadata", "raw", "reasons", "param", "loc")
_MAX_DEPTH = 6

_HTML_TITLE = re.compile(r"<title>(.*?)</title>", re.I | re.S)
_DURATION = re.compile(
  r"(?P<number>\d+(?:\.\d+)?)\s*"
  r"(?P<unit>ms|milliseconds?|s|sec(?:onds?)?|m|min(?:utes?)?|h|hours?|d|days?)(?![a-z])",
  re.I,
)
_UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
# "try again in 1m2.5s", "retry after 20 seconds", "Please wait 30 s"
_WAIT_IN_WORDS = re.compile(
  r"(?:(?:try again|retry|available|reset[s]?)\s+(?:in|after)|wait(?:\s+for)?)\s+(?:about\s+)?"
  rf"(?P<duration>(?:{_DURATION.pattern.replace('?P<number>', '').replace('?P<unit>', '')}\s*)+)",
  re.I,
)
# A larger number is a time in seconds or in milliseconds since 1970, not a duration.
_EPOCH_SECONDS, _EPOCH_MILLISECONDS = 10**9, 10**12


def one_line(text: str, max_characters: int = _MAX_CHARACTERS) -> str:
  """Returns a text of a server as one short line without control and format characters."""
  shown = "".join(c if c.isprintable() else " " for c in text[: 8 * max_characters])
  line = " ".join(shown.split())
  return line if len(line) <= max_characters else line[: max_characters - 3] + "..."


def words_of(content: bytes) -> str:
  """Returns what the body of an error says, on one line; "" if it says nothing."""
  text = content[:65_536].decode("utf-8", "replace")
  try:
    body = json.loads(content)
  except (ValueError, RecursionError):
    title = _HTML_TITLE.search(text) if text.lstrip().startswith("<") else None
    return one_line(title[1] if title else text)
  if not isinstance(body, Mapping | list):
    return one_line(str(body)) if body is not None else ""
  words = list(dict.fromkeys(one_line(one) for one in _messages(body, _MAX_DEPTH)))
  # A form that is not known is shown as it is.
  return one_line("; ".join(filter(None, words)) or (text if body else ""))


def _messages(value: Any, depth: int) -> Iterator[str]:
  """Yields the texts under the keys of messages, in the order of the keys."""
  if isinstance(value, str):
    yield value
  elif depth and isinstance(value, list):
    for one in value[:5]:
      yield from _messages(one, depth - 1)
  elif depth and isinstance(value, Mapping):
    for key in (*_MESSAGE_KEYS, *_FURTHER_KEYS):
      if key in value:
        yield from _messages(value[key], depth - 1)


def stated_wait(headers: Mapping[str, str], content: bytes) -> float | None:
  """Returns the seconds that a server asks to wait; None if it names none.

  Reads, in this order: retry-after-ms and Retry-After (RFC 9110, section 10.2.3), the
  x-ratelimit-reset headers of the limits that are used up, google.rpc.RetryInfo, and the words of
  the message ("try again in 25 s").
  """
  for wait in (_header_wait(headers), _reset_wait(headers), _body_wait(content)):
    if wait is not None:
      return wait
  return None


def _header_wait(headers: Mapping[str, str]) -> float | None:
  if "retry-after-ms" in headers:
    return _seconds(headers["retry-after-ms"], scale=0.001)
  value = headers.get("retry-after")
  if value is None:
    return None
  seconds = _seconds(value)
  if seconds is not None:
    return seconds
  try:
    return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
  except (ValueError, TypeError, OverflowError):
    return None


def _reset_wait(headers: Mapping[str, str]) -> float | None:
  """Returns the longest wait of the limits that are used up, or whose state is not given."""
  waits = []
  for name, value in headers.items():
    if not re.search(r"ratelimit-(?:.*-)?reset", name, re.I):
      continue
    remaining = headers.get(re.sub("reset", "remaining", name, flags=re.I), "0")
    wait = _reset_time(value)
    if wait is not None and _seconds(remaining) in (None, 0.0):
      waits.append(wait)
  return max(waits, default=None)


def _reset_time(value: str) -> float | None:
  """Reads "1m2.5s", a number of seconds, a time since 1970, or an ISO 8601 time."""
  seconds = _seconds(value)
  if seconds is not None:
    if seconds >= _EPOCH_SECONDS:
      return max(seconds / (1000 if seconds >= _EPOCH_MILLISECONDS else 1) - time.time(), 0.0)
    return seconds
  try:
    return max(datetime.datetime.fromisoformat(value).timestamp() - time.time(), 0.0)
  except (ValueError, OverflowError, OSError):
    return _duration(value)


def _body_wait(content: bytes) -> float | None:
  try:
    delay = _retry_delay(json.loads(content), _MAX_DEPTH)
  except (ValueError, RecursionError):
    delay = None
  if delay is not None:
    return _duration(delay)
  found = _WAIT_IN_WORDS.search(content[:65_536].decode("utf-8", "replace"))
  return None if found is None else _duration(found["duration"])


def _retry_delay(value: Any, depth: int) -> str | None:
  """Returns the retryDelay of a google.rpc.RetryInfo within the body."""
  if not depth or not isinstance(value, Mapping | list):
    return None
  if isinstance(value, Mapping) and isinstance(value.get("retryDelay"), str):
    return value["retryDelay"]
  inner = value.values() if isinstance(value, Mapping) else value
  found = (_retry_delay(one, depth - 1) for one in inner)
  return next((one for one in found if one is not None), None)


def _duration(text: str) -> float | None:
  parts = _DURATION.findall(text)
  if not parts:
    return None
  return sum(float(number) * _unit_seconds(unit.lower()) for number, unit in parts)


def _unit_seconds(unit: str) -> float:
  return 0.001 if unit.startswith(("ms", "milli")) else _UNIT_SECONDS[unit[0]]


def _seconds(text: str, scale: float = 1.0) -> float | None:
  """Returns a non-negative, finite number, or None."""
  try:
    seconds = float(text) * scale
  except ValueError:
    return None
  # Also false for NaN.
  return max(seconds, 0.0) if seconds < float("inf") else None
