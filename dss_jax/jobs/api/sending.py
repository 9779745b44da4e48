"""Answers on their way to the client: further headers, and the status for the log."""

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import MutableHeaders


class Sending:
  """Sends an answer with headers that it does not have itself.

  Attributes:
    status: of the answer; 500 until it begins.
  """

  def __init__(self, send: Any, headers: Mapping[str, str]):
    self._send = send
    self._headers = headers
    self.status = 500

  async def __call__(self, message: Any) -> None:
    if message["type"] == "http.response.start":
      self.status = message["status"]
      headers = MutableHeaders(scope=message)
      for name, value in self._headers.items():
        headers.setdefault(name, value)
    await self._send(message)
