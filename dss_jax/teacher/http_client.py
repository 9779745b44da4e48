"""A teacher behind an OpenAI-compatible API: vLLM, JetStream, llama.cpp, Ollama, Gemini, ...

The openai library builds and sends the requests. Around it stand what a long run needs: a
time-out on the whole of each attempt, a bound on the size of what comes back, retries that
honour Retry-After for all requests at once, and a key that leaves this module in requests only.
"""

import asyncio
import dataclasses
import email.utils
import os
import random
import time
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

import httpx2
import openai

from dss_jax.errors import UserError
from dss_jax.teacher.clients import Question, Reply, RequestFailed

DEFAULT_URL = "https://api.openai.com/v1"
DEFAULT_KEY_ENV = "OPENAI_API_KEY"
MAX_RESPONSE_BYTES = 2**20
_TOO_LARGE = f"the response has more than {MAX_RESPONSE_BYTES:,} bytes"
# Stands in the header where a server of one's own asks for no key.
_NO_KEY = "none"
_SHORTEST_KEY = 8
_REFUSED = {
  401: "the key was refused; set {env} to a key that is valid there",
  403: "the key may not use this; set {env} to one that may, or name another model",
  404: "there is no such model or path; check the model's name, and that the URL ends in /v1",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
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


class _TooLarge(Exception):
  """The response is larger than MAX_RESPONSE_BYTES."""


class HttpTeacher:
  """Asks `model` at `url` for chat answers or continuations."""

  sees_labels = True
  is_recorded = False

  def __init__(
    self,
    model: str,
    *,
    url: str | None = None,
    key_env: str = DEFAULT_KEY_ENV,
    form: Literal["chat", "completion"] = "chat",
    patience: Patience | None = None,
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
    self._url = _checked_url(url or DEFAULT_URL)
    self._key_env = key_env
    self._key = _key(key_env, self._url)
    self._form = form
    self._patience = patience or Patience()
    self._not_before = 0.0
    # OpenAI's own newer models know the limit under this name alone, other servers the old.
    is_openai = urllib.parse.urlsplit(self._url).hostname == "api.openai.com"
    self._limit_key = "max_completion_tokens" if is_openai and form == "chat" else "max_tokens"
    self._client = openai.AsyncOpenAI(
      api_key=self._key or _NO_KEY,
      base_url=self._url,
      max_retries=0,
      timeout=self._patience.timeout_seconds,
      http_client=openai.DefaultAsyncHttpxClient(
        # A redirect could carry the key to another host.
        follow_redirects=False,
        event_hooks={"response": [_bound_response]},
        headers={"accept-encoding": "identity"},
      ),
    )

  async def ask(self, question: Question) -> Reply:
    """As Teacher.ask: sends the request again, with patience, where that may help."""
    patience = self._patience
    for attempt in range(1, patience.attempts + 1):
      await self._until_allowed()
      try:
        return await self._attempt(question)
      except _Attempt as error:
        times = f" ({attempt} attempts)" if attempt > 1 else ""
        failure = RequestFailed(f"{self._redacted(str(error))}{times}")
        wait = self._wait(attempt, error)
        if not error.retry or attempt == patience.attempts or wait is None:
          raise failure from None
      self.retries += 1
      await asyncio.sleep(wait)
    raise AssertionError("at least one attempt is made")

  async def close(self) -> None:
    await self._client.close()

  async def _until_allowed(self) -> None:
    while (wait := self._not_before - time.monotonic()) > 0:
      # Spread out, lest all requests come back in one instant.
      await asyncio.sleep(wait * random.uniform(1.0, 1.1))

  def _wait(self, attempt: int, error: _Attempt) -> float | None:
    """Seconds until the next attempt; None where the server asks for too many."""
    patience = self._patience
    wait = min(patience.base_wait_seconds * 2 ** (attempt - 1), patience.longest_wait_seconds)
    wait *= random.uniform(0.5, 1.0)
    if error.retry_after is None:
      return wait
    if error.retry_after > patience.longest_retry_after_seconds:
      return None
    # The server turns the client away, not this one request: all of them hold.
    self._not_before = max(self._not_before, time.monotonic() + error.retry_after)
    return max(wait, error.retry_after * random.uniform(1.0, 1.1))

  async def _attempt(self, question: Question) -> Reply:
    body: dict[str, Any] = {
      "model": self._model,
      "temperature": question.temperature,
      self._limit_key: question.max_tokens,
    }
    if self._form == "chat":
      path, body["messages"] = "/chat/completions", question.messages
    else:
      path, body["prompt"] = "/completions", question.text
    if question.stop:
      body["stop"] = list(question.stop)
    seconds = self._patience.timeout_seconds
    try:
      async with asyncio.timeout(seconds):
        response = await self._client.post(path, cast_to=object, body=body)
    except TimeoutError:
      raise _Attempt(f"no whole answer within {seconds:g} seconds", retry=True) from None
    except openai.APIStatusError as error:
      raise self._status(error) from None
    except Exception as error:
      raise _connection(error) from None
    return self._reply(response)

  def _status(self, error: openai.APIStatusError) -> Exception:
    status = error.status_code
    said = self._redacted(_one_line(_message(error.body)))
    if status in _REFUSED:
      mend = _REFUSED[status].format(env=self._key_env)
      return UserError(f"--teacher {self.name} at {self._url}: HTTP {status} {said}: {mend}")
    # 408 time-out, 409 conflict, 425 too early, 429 too many requests; all of the server's own.
    retry = status in (408, 409, 425, 429) or status >= 500
    reason = f"HTTP {status} {said}".strip()
    after = _retry_after(error.response.headers) if retry else None
    return _Attempt(reason, retry=retry, retry_after=after)

  def _reply(self, response: Any) -> Reply:
    """What a response says, strictly; a body of another shape is worth another attempt."""
    try:
      choice = response["choices"][0]
      text = choice["message"]["content"] if self._form == "chat" else choice["text"]
      finish, usage = choice.get("finish_reason"), response.get("usage")
      model = response.get("model")
    except (KeyError, IndexError, TypeError, AttributeError):
      kind = "text" if isinstance(response, str) else "JSON of another shape"
      raise _Attempt(f"the response is no completion, but {kind}", retry=True) from None
    if text is None:
      text = ""
    if not isinstance(text, str):
      raise _Attempt("the response's content is no text", retry=True)
    usage = usage if isinstance(usage, Mapping) else {}
    return Reply(
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


async def _bound_response(response: httpx2.Response) -> None:
  """Makes reading the response fail beyond MAX_RESPONSE_BYTES; called before it is read."""
  encoding = response.headers.get("content-encoding", "identity").strip().lower()
  if encoding not in ("", "identity"):
    # A few compressed bytes could unpack into more than memory holds.
    raise _TooLarge(f"the response is compressed ({encoding[:20]}), which was not asked for")
  length = response.headers.get("content-length", "")
  if length.isdecimal() and int(length) > MAX_RESPONSE_BYTES:
    raise _TooLarge(_TOO_LARGE)
  response.stream = _BoundedStream(response.stream)


class _BoundedStream(httpx2.AsyncByteStream):
  def __init__(self, stream: Any):
    self._stream = stream

  async def __aiter__(self) -> AsyncIterator[bytes]:
    size = 0
    async for part in self._stream:
      size += len(part)
      if size > MAX_RESPONSE_BYTES:
        raise _TooLarge(_TOO_LARGE)
      yield part

  async def aclose(self) -> None:
    await self._stream.aclose()


def _connection(error: Exception) -> _Attempt:
  """The failure of an attempt that brought no status and no JSON."""
  cause: BaseException | None = error
  while cause is not None:
    if isinstance(cause, _TooLarge):
      return _Attempt(str(cause), retry=False)
    cause = cause.__cause__
  if isinstance(error, openai.APITimeoutError):
    return _Attempt("no answer in time", retry=True)
  if isinstance(error, openai.APIConnectionError):
    inner = error.__cause__ or error
    what = f"{type(inner).__name__}: {_one_line(str(inner))}".rstrip(": ")
    return _Attempt(f"the connection failed: {what}", retry=True)
  if isinstance(error, ValueError | RecursionError):
    return _Attempt("the response is not JSON", retry=True)
  return _Attempt(f"the request failed ({type(error).__name__})", retry=True)


def _message(body: Any) -> str:
  """What the body of an error says."""
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


def _checked_url(url: str) -> str:
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


def _key(key_env: str, url: str) -> str:
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


def _one_line(text: str) -> str:
  line = " ".join("".join(c if c.isprintable() else " " for c in text[:1000]).split())
  return line if len(line) <= 160 else line[:157] + "..."


def _count(value: Any) -> int | None:
  return value if type(value) is int and 0 <= value < 2**40 else None
