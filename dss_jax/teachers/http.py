"""A teacher behind an OpenAI-compatible API: vLLM, JetStream, llama.cpp, Ollama, Gemini, ...

Requests go through aiohttp, whose share of the processor leaves room for hundreds a second;
OpenAI's own library takes four times as much. Around it stands what a long run needs: a time-out
on the whole of each attempt, a bound on the size of what comes back, retries that honour
Retry-After for all requests at once, and a key that leaves this module in requests only.
"""

import asyncio
import dataclasses
import email.utils
import json
import random
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any, Literal

import aiohttp

from dss_jax import __version__
from dss_jax.errors import UserError
from dss_jax.teachers.access import DEFAULT_KEY_ENV, DEFAULT_URL, checked_url, key_in, proxy_for
from dss_jax.teachers.base import RequestFailed, TeacherRequest, TeacherResponse

MAX_RESPONSE_BYTES = 2**20
_TOO_LARGE = f"the response has more than {MAX_RESPONSE_BYTES:,} bytes"
_REFUSED = {
  401: "the key was refused; set {env} to a key that is valid there",
  403: "the key may not use this; set {env} to one that may, or name another model",
  404: "there is no such model or path; check the model's name, and that the URL ends in /v1",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetryPolicy:
  """How long one request is waited for and how often it is sent again.

  Attempt n waits base * 2^(n-1) seconds, at most `longest_wait_seconds`, times a random
  number from 0.5 to 1; a Retry-After of the server replaces the wait where it is longer.
  """

  timeout_seconds: float = 120.0
  attempts: int = 6
  base_wait_seconds: float = 0.5
  longest_wait_seconds: float = 30.0
  # A server that asks for more has no room today: the row is set aside.
  longest_retry_after_seconds: float = 300.0


class _Attempt(Exception):
  """One attempt failed; `retry` says whether another may do better."""

  def __init__(self, reason: str, *, retry: bool, retry_after: float | None = None):
    super().__init__(reason)
    self.retry = retry
    self.retry_after = retry_after


class HttpTeacher:
  """Asks `model` at `url` for chat answers or continuations."""

  is_recorded = False

  def __init__(
    self,
    model: str,
    *,
    url: str | None = None,
    key_env: str = DEFAULT_KEY_ENV,
    api: Literal["chat", "completion"] = "chat",
    retry_policy: RetryPolicy | None = None,
  ):
    """Opens no connection yet.

    Args:
      url: up to and including /v1; by default OpenAI's own.
      key_env: the environment variable that holds the key. A server of one's own may need none.

    Raises:
      UserError: the URL or the key cannot be one.
    """
    self.name = f"openai:{model}"
    self.retries = 0
    self._model = model
    self._url = checked_url(url or DEFAULT_URL)
    self._key_env = key_env
    self._key = key_in(key_env, self._url)
    self._api = api
    self._retry_policy = retry_policy or RetryPolicy()
    self._not_before = 0.0
    # OpenAI's own newer models know the limit under this name alone, other servers the old.
    is_openai = urllib.parse.urlsplit(self._url).hostname == "api.openai.com"
    self._limit_key = "max_completion_tokens" if is_openai and api == "chat" else "max_tokens"
    path = "/chat/completions" if api == "chat" else "/completions"
    self._endpoint = self._url + path
    # Opened by the first request: it belongs to the event loop that it is opened in.
    self._session: aiohttp.ClientSession | None = None

  async def ask(self, request: TeacherRequest) -> TeacherResponse:
    """As Teacher.ask: sends the request again, with retry_policy, where that may help."""
    retry_policy = self._retry_policy
    for attempt in range(1, retry_policy.attempts + 1):
      await self._until_allowed()
      try:
        return await self._attempt(request)
      except _Attempt as error:
        times = f" ({attempt} attempts)" if attempt > 1 else ""
        failure = RequestFailed(f"{self._redacted(str(error))}{times}")
        wait = self._wait(attempt, error)
        if not error.retry or attempt == retry_policy.attempts or wait is None:
          raise failure from None
      self.retries += 1
      await asyncio.sleep(wait)
    raise AssertionError("at least one attempt is made")

  async def close(self) -> None:
    if self._session is not None:
      await self._session.close()
      self._session = None

  async def _until_allowed(self) -> None:
    while (wait := self._not_before - time.monotonic()) > 0:
      # Spread out, lest all requests come back in one instant.
      await asyncio.sleep(wait * random.uniform(1.0, 1.1))

  def _wait(self, attempt: int, error: _Attempt) -> float | None:
    """Seconds until the next attempt; None where the server asks for too many."""
    retry_policy = self._retry_policy
    wait = min(
      retry_policy.base_wait_seconds * 2 ** (attempt - 1), retry_policy.longest_wait_seconds
    )
    wait *= random.uniform(0.5, 1.0)
    if error.retry_after is None:
      return wait
    if error.retry_after > retry_policy.longest_retry_after_seconds:
      return None
    # The server turns the client away, not this one request: all of them hold.
    self._not_before = max(self._not_before, time.monotonic() + error.retry_after)
    return max(wait, error.retry_after * random.uniform(1.0, 1.1))

  async def _attempt(self, request: TeacherRequest) -> TeacherResponse:
    seconds = self._retry_policy.timeout_seconds
    try:
      async with (
        asyncio.timeout(seconds),
        self._open().post(
          self._endpoint, data=self._body(request), allow_redirects=False
        ) as response,
      ):
        content = await _content(response)
    except _Attempt:
      raise
    except TimeoutError:
      raise _Attempt(f"no whole answer within {seconds:g} seconds", retry=True) from None
    except Exception as error:
      what = f"{type(error).__name__}: {_one_line(str(error))}".rstrip(": ")
      raise _Attempt(f"the connection failed: {what}", retry=True) from None
    if not 200 <= response.status < 300:
      raise self._status(response.status, response.headers, content)
    return self._response(content)

  def _open(self) -> aiohttp.ClientSession:
    if self._session is None:
      headers = {
        "accept": "application/json",
        # A few compressed bytes could unpack into more than memory holds.
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": f"dss_jax/{__version__}",
      }
      if self._key:
        headers["authorization"] = f"Bearer {self._key}"
      self._session = aiohttp.ClientSession(
        # The caller bounds the requests in flight.
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

  def _status(self, status: int, headers: Mapping[str, str], content: bytes) -> Exception:
    said = self._redacted(_one_line(_message(content)))
    if status in _REFUSED:
      mend = _REFUSED[status].format(env=self._key_env)
      return UserError(f"--teacher {self.name} at {self._url}: HTTP {status} {said}: {mend}")
    # 408 time-out, 409 conflict, 425 too early, 429 too many requests; all of the server's own.
    retry = status in (408, 409, 425, 429) or status >= 500
    reason = f"HTTP {status} {said}".strip()
    return _Attempt(reason, retry=retry, retry_after=_retry_after(headers) if retry else None)

  def _response(self, content: bytes) -> TeacherResponse:
    """What a response says, strictly; a body of another shape is worth another attempt."""
    try:
      response = json.loads(content)
    except (ValueError, RecursionError):
      raise _Attempt("the response is not JSON", retry=True) from None
    try:
      choice = response["choices"][0]
      text = choice["message"]["content"] if self._api == "chat" else choice["text"]
      finish, usage = choice.get("finish_reason"), response.get("usage")
      model = response.get("model")
    except (KeyError, IndexError, TypeError, AttributeError):
      raise _Attempt("the response is JSON, but no completion", retry=True) from None
    if text is None:
      text = ""
    if not isinstance(text, str):
      raise _Attempt("the response's content is no text", retry=True)
    usage = usage if isinstance(usage, Mapping) else {}
    return TeacherResponse(
      # Half of a surrogate pair is legal JSON, but no file can hold it.
      text=self._redacted(text.encode("utf-8", "replace").decode("utf-8")),
      finish=self._word(finish),
      prompt_tokens=_count(usage.get("prompt_tokens")),
      completion_tokens=_count(usage.get("completion_tokens")),
      model=self._word(model),
    )

  def _word(self, value: Any) -> str | None:
    """A short text of the server's, safe to keep."""
    if not isinstance(value, str):
      return None
    return self._redacted(_one_line(value.encode("utf-8", "replace").decode("utf-8")))

  def _redacted(self, text: str) -> str:
    return text.replace(self._key, "[key]") if self._key else text


async def _content(response: aiohttp.ClientResponse) -> bytes:
  """The body of a response, read no further than MAX_RESPONSE_BYTES."""
  encoding = response.headers.get("content-encoding", "identity").strip().lower()
  if encoding not in ("", "identity"):
    what = f"the response is compressed ({_one_line(encoding)[:20]}), which was not asked for"
    raise _Attempt(what, retry=False)
  length = response.headers.get("content-length", "")
  if length.isdecimal() and int(length) > MAX_RESPONSE_BYTES:
    raise _Attempt(_TOO_LARGE, retry=False)
  content = bytearray()
  async for part in response.content.iter_any():
    content += part
    if len(content) > MAX_RESPONSE_BYTES:
      raise _Attempt(_TOO_LARGE, retry=False)
  return bytes(content)


def _message(content: bytes) -> str:
  """What the body of an error says."""
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
  """Seconds of a Retry-After header: a number, a date, or retry-after-ms; None for junk."""
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
  # NaN compares as false with everything.
  return max(seconds, 0.0) if seconds < float("inf") else None


def _one_line(text: str) -> str:
  line = " ".join("".join(c if c.isprintable() else " " for c in text[:1000]).split())
  return line if len(line) <= 160 else line[:157] + "..."


def _count(value: Any) -> int | None:
  return value if type(value) is int and 0 <= value < 2**40 else None
