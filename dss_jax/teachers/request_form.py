"""The form of a request's body, and how it is adapted to a server that refuses a part of it.

Models and gateways differ in what they accept: newer models know max_completion_tokens in place of
max_tokens, some know no stop or no temperature, some chat templates know no system message.
"""

import dataclasses
import json
import re
from typing import Any

from dss_jax.config.schema import RequestPart
from dss_jax.teachers.base import Api, TeacherRequest

# Says that a server does not know or take something, rather than that its value is wrong.
_REFUSAL = re.compile(
  r"unsupported|not support|n.t support|unknown|unrecogni[sz]ed|unexpected|not (?:be )?permitted"
  r"|not allowed|not enabled|no such|extra (?:inputs|field|param)|cannot find field|deprecated"
  r"|not a valid (?:param|field|argument)|invalid (?:param|field|argument)|must alternate"
  r"|only user",
  re.I,
)
# What a refusal is about, the part that answers it, and what the user reads then.
_ADAPTATIONS: tuple[tuple[re.Pattern[str], RequestPart, str], ...] = (
  (re.compile(r"max_tokens"), "max_completion_tokens", "max_tokens is max_completion_tokens"),
  (re.compile(r"\bstop\b"), "no-stop", "stop sequences are not sent; answers are cut here"),
  (
    re.compile(r"\btemperature\b"),
    "no-temperature",
    "the temperature is not sent; the server uses its own",
  ),
  (
    re.compile(r"system (?:message|prompt|instruction)|developer instruction|\broles?\b", re.I),
    "no-system-role",
    "the instruction is sent in the first user message",
  ),
)


@dataclasses.dataclass(frozen=True)
class RequestForm:
  """What a request's body holds, as the names of `--request-form`."""

  parts: frozenset[RequestPart] = frozenset()

  def body(self, request: TeacherRequest, model: str, api: Api) -> bytes:
    """Returns the body of a request as JSON."""
    limit = "max_completion_tokens" if "max_completion_tokens" in self.parts else "max_tokens"
    body: dict[str, Any] = {"model": model, limit: request.max_tokens}
    if "no-temperature" not in self.parts:
      body["temperature"] = request.temperature
    if api == "chat":
      body["messages"] = self._messages(request.messages or [])
    else:
      body["prompt"] = request.text
    if request.stop and "no-stop" not in self.parts:
      body["stop"] = list(request.stop)
    return json.dumps(body).encode("ascii")

  def _messages(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    if "no-system-role" not in self.parts or len(messages) < 2 or messages[0]["role"] != "system":
      return messages
    first = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": first}, *messages[2:]]

  def adapted(self, words: str) -> "tuple[RequestForm, str] | None":
    """Returns the form that a refusal with these words asks for, and a sentence that says so.

    None if the refusal is about something else, or the form has that part already.
    """
    if not _REFUSAL.search(words):
      return None
    if "max_completion_tokens" in self.parts and "max_completion_tokens" in words:
      return RequestForm(self.parts - {"max_completion_tokens"}), "max_tokens is sent after all"
    for about, part, meaning in _ADAPTATIONS:
      if part not in self.parts and about.search(words):
        return RequestForm(self.parts | {part}), meaning
    return None
