"""A teacher behind an OpenAI-compatible API: vLLM, JetStream, llama.cpp, Ollama, Gemini, ...

Uses aiohttp, which sends hundreds of requests a second on one CPU core; OpenAI's own library needs
four times the CPU time. Adds a timeout on each whole attempt, a limit on the response size, and
retries that apply Retry-After to all requests. The key leaves this module in requests only.
"""

import asyncio
import dataclasses
import email.utils
import json
import random
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import aiohttp

from dss_jax import __version__
from dss_jax.errors import UserError
from dss_jax.teachers.access import DEFAULT_KEY_ENV, DEFAULT_URL, checked_url, proxy_for, read_key
from dss_jax.teachers.base import Api, RequestFailed, TeacherRequest, TeacherResponse

MAX_RESPONSE_BYTES = 2**20
_TOO_LARGE = f"the response has more than {MAX_RESPONSE_BYTES:,} bytes"
_REFUSED = {
  401: "the key was rejected; set {env} to a valid key",
  403: "the key has no access; set {env} to a key that has, or give another model",
  404: "no such model or path; check the model's name, and that the URL ends in /v1",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetryPolicy:
  """The timeout, number of attempts and backoff of one request.

  After attempt n the backoff is base * 2^(n-1) seconds, at most `longest_wait_seconds`, times a
  random number from 0.5 to 1. A longer Retry-After of the server replaces it.
  """

  timeout_seconds: float = 120.0
  attempts: int = 6
  base_wait_seconds: float = 0.5
  longest_wait_seconds: float = 30.0
  # If the server asks for a longer wait, the request fails.
  longest_retry_after_seconds: float = 300.0


class _AttemptFailed(Exception):
  """One attempt failed; `retry` says whether another attempt may succeed."""

  def __init__(self, reason: str, *, retry: bool, retry_after: float | None = None):
    super().__init__(reason)
    self.retry = retry
    self.retry_after = retry_after


class HttpTeacher:
  """Requests chat answers or text completions of `model` at `url`."""

  is_recorded = False

  def __init__(
    self,
    model: str,
    *,
    url: str | None = None,
    key_env: str = DEFAULT_KEY_ENV,
    api: Api = "chat",
    retry_policy: RetryPolicy | None = None,
  ):
    """Checks URL and key; opens no connection yet.

    Args:
      url: up to and including /v1; by default OpenAI's.
      key_env: the environment variable with the key. The user's own server may need none.

    Raises:
      UserError: the URL or the key is invalid.
    """
    self.name = f"openai:{model}"
    self.retries = 0
    self._model = model
    self._url = checked_url(url or DEFAULT_URL)
    self._key_env = key_env
    self._key = read_key(key_env, self._url)
    self._api = api
    self._retry_policy = retry_policy or RetryPolicy()
    self._blocked_until = 0.0
    # OpenAI's newer models accept only the first name, other servers know the second.
    is_openai = urllib.parse.urlsplit(self._url).hostname == "api.openai.com"
    self._limit_key = "max_completion_tokens" if is_openai and api == "chat" else "max_tokens"
    path = "/chat/completions" if api == "chat" else "/completions"
    self._endpoint = self._url + path
    # Opened by the first request, because a session belongs to one event loop.
    self._session: aiohttp.ClientSession | None = None

  async def ask(self, request: TeacherRequest) -> TeacherResponse:
    """Returns the answer, as Teacher.ask; sends the request again after failures that may pass."""
    retry_policy = self._retry_policy
    for attempt in range(1, retry_policy.attempts + 1):
      await self._wait_until_allowed()
      try:
        return await self._attempt(request)
      except _AttemptFailed as error:
        times = f" ({attempt} attempts)" if attempt > 1 else ""
        failure = RequestFailed(f"{self._redacted(str(error))}{times}")
        delay = self._retry_delay(attempt, error)
        if not error.retry or attempt == retry_policy.attempts or delay is None:
          raise failure from None
      self.retries += 1
      await asyncio.sleep(delay)
    raise AssertionError("at least one attempt is made")

  async def close(self) -> None:
    if self._session is not None:
      await self._session.close()
      self._session = None

  async def _wait_until_allowed(self) -> None:
    while (wait := self._blocked_until - time.monotonic()) > 0:
      # Jitter, so that the requests do not all arrive at the same moment.
      await asyncio.sleep(wait * random.uniform(1.0, 1.1))

  def _retry_delay(self, attempt: int, error: _AttemptFailed) -> float | None:
    """Returns the seconds until the next attempt; None if the server asks for too many."""
    retry_policy = self._retry_policy
    wait = min(
      retry_policy.base_wait_seconds * 2 ** (attempt - 1), retry_policy.longest_wait_seconds
    )
    wait *= random.uniform(0.5, 1.0)
    if error.retry_after is None:
      return wait
    if error.retry_after > retry_policy.longest_retry_after_seconds:
      return None
    # A rate limit applies to the client, so all of its requests wait.
    self._blocked_until = max(self._blocked_until, time.monotonic() + error.retry_after)
    return max(wait, error.retry_after * random.uniform(1.0, 1.1))

  async def _attempt(self, request: TeacherRequest) -> TeacherResponse:
    seconds = self._retry_policy.timeout_seconds
    try:
      async with (
        asyncio.timeout(seconds),
        self._open_session().post(
          self._endpoint, data=self._body(request), allow_redirects=False
        ) as response,
      ):
        content = await _read_body(response)
    except _AttemptFailed:
      raise
    except TimeoutError:
      raise _AttemptFailed(f"no complete response within {seconds:g} seconds", retry=True) from None
    except Exception as error:
      what = f"{type(error).__name__}: {_one_line(str(error))}".rstrip(": ")
      raise _AttemptFailed(f"the connection failed: {what}", retry=True) from None
    if not 200 <= response.status < 300:
      raise self._status_error(response.status, response.headers, content)
    return self._parse(content)

  def _open_session(self) -> aiohttp.ClientSession:
    if self._session is None:
      headers = {
        "accept": "application/json",
        # A small compressed response could expand beyond the memory.
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": f"dss_jax/{__version__}",
      }
      if self._key:
        headers["authorization"] = f"Bearer {self._key}"
      self._session = aiohttp.ClientSession(
        # The caller limits the requests in flight.
        connector=aiohttp.TCPConnector(limit=0),
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(),
        proxy=proxy_for(self._url),
        auto_decompress=False,
      )
    return self._session

  def _body(self, request: TeacherRequest) -> bytes:
    body: dict[str, Any] = {
      "model": self._model,
      "temperature": request.temperature,
      self._limit_key: request.max_tokens,
    }
    if self._api == "chat":
      body["messages"] = request.messages
    else:
      body["prompt"] = request.text
    if request.stop:
      body["stop"] = list(request.stop)
    return json.dumps(body).encode("ascii")

  def _status_error(self, status: int, headers: Mapping[str, str], content: bytes) -> Exception:
    message = self._redacted(_one_line(_error_message(content)))
    if status in _REFUSED:
      mend = _REFUSED[status].format(env=self._key_env)
      return UserError(f"--teacher {self.name} at {self._url}: HTTP {status} {message}: {mend}")
    # 408 timeout, 409 conflict, 425 too early, 429 too many requests, 5xx server errors.
    retry = status in (408, 409, 425, 429) or status >= 500
    reason = f"HTTP {status} {message}".strip()
    return _AttemptFailed(reason, retry=retry, retry_after=_retry_after(headers) if retry else None)

  def _parse(self, content: bytes) -> TeacherResponse:
    """Parses the body of a response; a malformed body is a failed attempt."""
    try:
      response = json.loads(content)
    except (ValueError, RecursionError):
      raise _AttemptFailed("the response is not JSON", retry=True) from None
    try:
      choice = response["choices"][0]
      text = choice["message"]["content"] if self._api == "chat" else choice["text"]
      finish, usage = choice.get("finish_reason"), response.get("usage")
      model = response.get("model")
    except (KeyError, IndexError, TypeError, AttributeError):
      raise _AttemptFailed("the response is JSON, but not a completion", retry=True) from None
    if text is None:
      text = ""
    if not isinstance(text, str):
      raise _AttemptFailed("the response's content is not text", retry=True)
    usage = usage if isinstance(usage, Mapping) else {}
    return TeacherResponse(
      # A lone surrogate is legal JSON but cannot be encoded in UTF-8.
      text=self._redacted(text.encode("utf-8", "replace").decode("utf-8")),
      finish=self._short_text(finish),
      prompt_tokens=_count(usage.get("prompt_tokens")),
      completion_tokens=_count(usage.get("completion_tokens")),
      model=self._short_text(model),
    )

  def _short_text(self, value: Any) -> str | None:
    """Returns a text of the server as one short line without the key."""
    if not isinstance(value, str):
      return None
    return self._redacted(_one_line(value.encode("utf-8", "replace").decode("utf-8")))

  def _redacted(self, text: str) -> str:
    return text.replace(self._key, "[key]") if self._key else text


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
  """Reads the body of a response; fails beyond MAX_RESPONSE_BYTES."""
  encoding = response.headers.get("content-encoding", "identity").strip().lower()
  if encoding not in ("", "identity"):
    what = f"the response is compressed ({_one_line(encoding)[:20]}), which was not requested"
    raise _AttemptFailed(what, retry=False)
  length = response.headers.get("content-length", "")
  if length.isdecimal() and int(length) > MAX_RESPONSE_BYTES:
    raise _AttemptFailed(_TOO_LARGE, retry=False)
  content = bytearray()
  async for part in response.content.iter_any():
    content += part
    if len(content) > MAX_RESPONSE_BYTES:
      raise _AttemptFailed(_TOO_LARGE, retry=False)
  return bytes(content)


def _error_message(content: bytes) -> str:
  """Returns the message in the body of an error response."""
  try:
    body = json.loads(content)
  except (ValueError, RecursionError):
    return content[:1000].decode("utf-8", "replace")
  if isinstance(body, Mapping):
    inner = body.get("error", body)
    message = inner.get("message", "") if isinstance(inner, Mapping) else inner
    return message if isinstance(message, str) else ""
  return body if isinstance(body, str) else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
  """Returns the seconds of Retry-After (a number or a date) or retry-after-ms; None if invalid."""
  try:
    if "retry-after-ms" in headers:
      seconds = float(headers["retry-after-ms"]) / 1000
    elif "retry-after" not in headers:
      return None
    else:
      value = headers["retry-after"]
      try:
        seconds = float(value)
      except ValueError:
        seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
  except (ValueError, TypeError, OverflowError):
    return None
  # Also false for NaN.
  return max(seconds, 0.0) if seconds < float("inf") else None


def _one_line(text: str) -> str:
  line = " ".join("".join(c if c.isprintable() else " " for c in text[:1000]).split())
  return line if len(line) <= 160 else line[:157] + "..."


def _count(value: Any) -> int | None:
  return value if type(value) is int and 0 <= value < 2**40 else None
