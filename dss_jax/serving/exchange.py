"""An exchange with a client: its request, read within limits, and whether it still waits."""

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.requests import Request

from dss_jax.serving.errors import BadRequest, ClientGone, Refused

MAX_BODY_BYTES = 2**20
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
Result = TypeVar("Result")


async def read_json(request: Request) -> Any:
  """Reads the body of a request as JSON; raises Refused if it is too large or another type."""
  kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
  if kind != "application/json":
    # A page of another site could send another type without asking the browser.
    raise Refused(415, f"the content type must be application/json, not {kind[:50] or 'missing'}")
  length = request.headers.get("content-length", "")
  if length.isdecimal() and int(length) > MAX_BODY_BYTES:
    raise _too_large()
  body = bytearray()
  async for chunk in request.stream():
    body += chunk
    if len(body) > MAX_BODY_BYTES:
      raise _too_large()
  try:
    value = json.loads(body, parse_constant=_no_number)
    # Half of a surrogate pair is a text that cannot be written as UTF-8.
    if _SURROGATE.search(body):
      json.dumps(value, ensure_ascii=False).encode()
    return value
  except (ValueError, RecursionError) as error:
    raise BadRequest(f"the body is not JSON: {str(error)[:100]}") from None


def _no_number(name: str) -> None:
  raise ValueError(f"{name} is not a number of JSON")


def _too_large() -> Refused:
  return Refused(413, f"the body has more than {MAX_BODY_BYTES:,} bytes; send fewer prompts")


async def while_connected(request: Request, result: Awaitable[Result]) -> Result:
  """Returns the result; raises ClientGone, and cancels it, when the client leaves before."""
  work = asyncio.ensure_future(result)
  leaving = asyncio.ensure_future(_left(request))
  try:
    await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
    if work.done():
      return work.result()
    raise ClientGone
  finally:
    for task in (work, leaving):
      task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
      await asyncio.gather(work, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
  while (await request.receive())["type"] != "http.disconnect":
    pass
