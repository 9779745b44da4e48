"""Forms that browsers send: read within limits, and only those of the console's own pages."""

import contextlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

# Starlette reads forms with it; without it, the server says so when it starts.
import python_multipart  # noqa: F401
from starlette.datastructures import FormData
from starlette.requests import Request

from dss_jax.console.session import Sessions
from dss_jax.console.visit import visit_of
from dss_jax.jobs.api_error import ApiError
from dss_jax.serving.errors import Refused

FORM_BYTES = 2**20
FORM_TOKEN = "form_token"
_MAX_FIELDS = 200


@contextlib.asynccontextmanager
async def read_form(request: Request, limit_bytes: int) -> AsyncIterator[FormData]:
  """Reads a form, whose files are on the disk when they are large, until the body ends.

  Raises Refused if it has more bytes.
  """
  length = request.headers.get("content-length", "")
  if length.isdecimal() and int(length) > limit_bytes:
    raise _too_large(limit_bytes)
  received = 0

  async def receive() -> Any:
    nonlocal received
    message = await request.receive()
    received += len(message.get("body", b""))
    if received > limit_bytes:
      raise _too_large(limit_bytes)
    return message

  bounded = Request(request.scope, receive)
  async with bounded.form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=FORM_BYTES) as form:
    yield form


def check_form_token(request: Request, form: FormData, sessions: Sessions) -> None:
  """Raises ApiError unless a form comes from a page that this session was shown."""
  given = form.get(FORM_TOKEN)
  expected = sessions.form_token(visit_of(request).session)
  if not isinstance(given, str) or not hmac.compare_digest(given.encode(), expected.encode()):
    raise ApiError(
      "PERMISSION_DENIED", "this form is not of your session, or too old; load its page again"
    )


def text_of(form: FormData, name: str, default: str = "") -> str:
  """Returns a form's text without the spaces around it; the default if there is none."""
  value = form.get(name)
  return value.strip() if isinstance(value, str) else default


def _too_large(limit_bytes: int) -> Refused:
  return Refused(413, f"the form has more than {limit_bytes:,} bytes; send a smaller file")
