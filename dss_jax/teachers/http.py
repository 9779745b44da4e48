"""A teacher behind an OpenAI-compatible API: vLLM, JetStream, llama.cpp, Ollama, Gemini, ...

Uses aiohttp, which sends hundreds of requests a second on one CPU core; OpenAI's own library needs
four times the CPU time. Adds a timeout on each whole attempt and a limit on the response size. The
key leaves this module in requests only.
"""

import asyncio
import urllib.parse
from collections.abc import Mapping, Sequence

import aiohttp

from dss_jax import __version__
from dss_jax.config.schema import RequestPart
from dss_jax.errors import UserError
from dss_jax.progress import say
from dss_jax.teachers.access import DEFAULT_KEY_ENV, DEFAULT_URL, checked_url, proxy_for, read_key
from dss_jax.teachers.base import Api, Billed, RequestFailed, TeacherRequest, TeacherResponse
from dss_jax.teachers.completions import ErrorWithin200, billed_of, read_completion
from dss_jax.teachers.request_form import RequestForm
from dss_jax.teachers.server_words import one_line, stated_wait, words_of

MAX_RESPONSE_BYTES = 2**20
_TOO_LARGE = f"the response has more than {MAX_RESPONSE_BYTES:,} bytes"
# 408 timeout, 409 conflict, 425 too early, 429 too many requests; and 5xx, errors of the server.
_MAY_PASS = (408, 409, 425, 429)
# Statuses of a server that does not take a part of the request; llama.cpp answers 500.
_MAY_REFUSE_A_PART = (400, 422, 500, 501)
# Said of a model that does not exist, whatever the status.
_NO_SUCH_MODEL = ("model_not_found", "model not found", "no such model", "unknown model")


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
    timeout_seconds: float = 120.0,
    request_form: Sequence[RequestPart] = (),
  ):
    """Checks URL and key; opens no connection yet.

    Args:
      url: up to and including /v1; by default OpenAI's.
      key_env: the environment variable with the key. The user's own server may need none.
      timeout_seconds: of one request, from its start to the last byte of the answer.
      request_form: what is known of the server; the rest is found out from its refusals.

    Raises:
      UserError: the URL or the key is invalid.
    """
    self.name = f"openai:{model}"
    self._model = model
    self._url = checked_url(url or DEFAULT_URL)
    self._key_env = key_env
    self._key = read_key(key_env, self._url)
    self._api = api
    self._timeout_seconds = timeout_seconds
    parts = set(request_form)
    # All of OpenAI's chat models accept this name, its newer ones no other.
    if api == "chat" and urllib.parse.urlsplit(self._url).hostname == "api.openai.com":
      parts.add("max_completion_tokens")
    self._form = RequestForm(frozenset(parts))
    self._refused_forms: set[RequestForm] = set()
    self._form_is_accepted = False
    self._endpoint = self._url + ("/chat/completions" if api == "chat" else "/completions")
    # Opened by the first request, because a session belongs to one event loop.
    self._session: aiohttp.ClientSession | None = None

  async def ask(self, request: TeacherRequest) -> TeacherResponse:
    """Returns the answer, as Teacher.ask.

    A request whose form the server does not take is sent again in another one, at once. The form
    is kept for the requests that follow.
    """
    while True:
      form = self._form
      status, headers, content = await self._send(form.body(request, self._model, self._api))
      # Texts are cut later, which could leave a part of the key.
      content = content.replace(self._key.encode(), b"[key]") if self._key else content
      if 200 <= status < 300:
        try:
          response = read_completion(content, self._api)
        except ErrorWithin200 as error:
          status = error.status
        except RequestFailed as error:
          raise self._failed(str(error), error) from None
        else:
          self._form_is_accepted = True
          return self._without_key(response)
      words = self._redacted(words_of(content))
      if not self._resend(form, status, words):
        raise self._error(status, headers, content, words)

  async def close(self) -> None:
    if self._session is not None:
      await self._session.close()
      self._session = None

  def _resend(self, form: RequestForm, status: int, words: str) -> bool:
    """Returns whether a request that was refused in `form` may be sent in another one.

    Changes the form to the one that the refusal asks for.
    """
    # A server that has answered requests of this form refuses something else.
    if self._form_is_accepted or status not in _MAY_REFUSE_A_PART:
      return False
    if form != self._form:
      return True
    adapted = self._form.adapted(words)
    self._refused_forms.add(self._form)
    if adapted is None or adapted[0] in self._refused_forms:
      return False
    self._form, meaning = adapted
    flags = " ".join(f"--request-form {part}" for part in sorted(self._form.parts))
    say(f'teacher: the server says "{words}"; {meaning} ({flags or "the usual form"})')
    return True

  async def _send(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
    """Returns status, headers and body of the response."""
    seconds = self._timeout_seconds
    # The server may have worked, and billed, unless no connection was made.
    unknown = Billed()
    try:
      async with (
        asyncio.timeout(seconds),
        self._open_session().post(self._endpoint, data=body, allow_redirects=False) as response,
      ):
        return response.status, response.headers, await _read_body(response)
    except RequestFailed:
      raise
    except TimeoutError:
      reason = f"no complete response within {seconds:g} seconds"
      raise RequestFailed(reason, may_pass=True, billed=unknown) from None
    except Exception as error:
      what = f"{type(error).__name__}: {one_line(str(error))}".rstrip(": ")
      reason = self._redacted(f"the connection failed: {what}")
      billed = None if isinstance(error, aiohttp.ClientConnectorError) else unknown
      raise RequestFailed(reason, may_pass=True, billed=billed) from None

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

  def _error(
    self, status: int, headers: Mapping[str, str], content: bytes, words: str
  ) -> UserError | RequestFailed:
    """Returns the error for a status that is no success.

    A UserError if no other request can succeed either: the key is rejected, the model does not
    exist. Any other refusal may be about this row alone.
    """
    place = f"--teacher {self.name} at {self._url}: HTTP {status} {words}".rstrip()
    if status == 401:
      return UserError(f"{place}: the key was rejected; set {self._key_env} to a valid key")
    if status == 404 or (status < 500 and any(one in words.lower() for one in _NO_SUCH_MODEL)):
      mend = "check the model's name, and that the URL ends in /v1"
      return UserError(f"{place}: no such model or path; {mend}")
    may_pass = status in _MAY_PASS or status >= 500
    return RequestFailed(
      f"HTTP {status} {words}".strip(),
      may_pass=may_pass,
      wait_seconds=stated_wait(headers, content) if may_pass else None,
      billed=billed_of(content),
    )

  def _failed(self, reason: str, error: RequestFailed) -> RequestFailed:
    return RequestFailed(self._redacted(reason), may_pass=error.may_pass, billed=error.billed)

  def _without_key(self, response: TeacherResponse) -> TeacherResponse:
    if not self._key:
      return response
    texts = {name: getattr(response, name) for name in ("text", "finish", "model", "remark")}
    redacted = {name: text and self._redacted(text) for name, text in texts.items()}
    return TeacherResponse(
      **redacted,
      prompt_tokens=response.prompt_tokens,
      completion_tokens=response.completion_tokens,
    )

  def _redacted(self, text: str) -> str:
    return text.replace(self._key, "[key]") if self._key else text


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
  """Reads the body of a response; fails beyond MAX_RESPONSE_BYTES."""
  encoding = response.headers.get("content-encoding", "identity").strip().lower()
  if encoding not in ("", "identity"):
    what = f"the response is compressed ({one_line(encoding, 20)}), which was not requested"
    raise RequestFailed(what, billed=Billed())
  length = response.headers.get("content-length", "")
  if length.isdecimal() and int(length) > MAX_RESPONSE_BYTES:
    raise RequestFailed(_TOO_LARGE, billed=Billed())
  content = bytearray()
  async for part in response.content.iter_any():
    content += part
    if len(content) > MAX_RESPONSE_BYTES:
      raise RequestFailed(_TOO_LARGE, billed=Billed())
  return bytes(content)
