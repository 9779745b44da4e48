"""Reads the body of a completion: chat or text, with thoughts, parts, refusals and usage."""

import json
from collections.abc import Mapping
from typing import Any

from dss_jax.teachers.base import Api, Billed, RequestFailed, TeacherResponse
from dss_jax.teachers.server_words import one_line, words_of

_MAX_NAME_CHARACTERS = 100


class ErrorWithin200(Exception):
  """The body of a successful response is an error: OpenRouter and others answer so."""

  def __init__(self, status: int):
    super().__init__(status)
    self.status = status


def read_completion(content: bytes, api: Api) -> TeacherResponse:
  """Reads the answer in the body of a response with status 200.

  Content in parts is joined from its texts; thoughts that the server keeps apart
  (`reasoning_content`, parts of type "thinking") are no part of the answer. An answer that was
  paid for is returned even if it has no text, with a remark; it would not be better next time.

  Raises:
    RequestFailed: the body is not a completion.
    ErrorWithin200: the body is an error, with a status of its own.
  """
  try:
    body = json.loads(content)
  except (ValueError, RecursionError):
    start = words_of(content)[:80]
    raise RequestFailed(
      f"the response is not JSON{start and f': {start}'}", may_pass=True
    ) from None
  choice = _first_choice(body)
  if choice is None:
    if isinstance(body, Mapping | list) and _error_of(body) is not None:
      raise ErrorWithin200(_status_of(_error_of(body)))
    raise RequestFailed(
      "the response is JSON, but not a completion", may_pass=True, billed=_billed(body)
    )
  if _error_of(choice) is not None and choice.get("finish_reason") in (None, "error"):
    raise ErrorWithin200(_status_of(_error_of(choice)))
  prompt_tokens, completion_tokens = _tokens(body)
  text, remark = _text_of(choice, api)
  if remark and not completion_tokens:
    raise RequestFailed(remark, may_pass=True)
  return TeacherResponse(
    text=text,
    finish=_name(choice.get("finish_reason")),
    prompt_tokens=prompt_tokens,
    completion_tokens=completion_tokens,
    model=_name(body.get("model")),
    remark=remark or _remark(choice, text),
  )


def _first_choice(body: Any) -> Mapping[str, Any] | None:
  choices = body.get("choices") if isinstance(body, Mapping) else None
  if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
    return choices[0]
  return None


def _text_of(choice: Mapping[str, Any], api: Api) -> tuple[str, str | None]:
  """Returns the text of the answer, and why it cannot be read if it cannot."""
  message = choice.get("message")
  if api == "chat" and not isinstance(message, Mapping):
    return "", "the response has no message"
  content = message.get("content") if isinstance(message, Mapping) and api == "chat" else None
  if api == "completion":
    content = choice.get("text")
  if content is None:
    return "", None
  if isinstance(content, list):
    content = "".join(_text_of_part(part) for part in content)
  if not isinstance(content, str):
    return "", "the response's content is not text"
  # A lone surrogate is legal JSON but cannot be encoded in UTF-8.
  return content.encode("utf-8", "replace").decode("utf-8"), None


def _text_of_part(part: Any) -> str:
  if isinstance(part, str):
    return part
  if isinstance(part, Mapping) and part.get("type", "text") in ("text", "output_text"):
    text = part.get("text")
    return text if isinstance(text, str) else ""
  return ""


def _remark(choice: Mapping[str, Any], text: str) -> str | None:
  """Returns what the server gave in place of a text."""
  message = choice.get("message")
  if text.strip() or not isinstance(message, Mapping):
    return None
  refusal = message.get("refusal")
  if isinstance(refusal, str) and refusal.strip():
    return f"the model refused: {one_line(refusal)}"
  if any(message.get(key) for key in ("reasoning_content", "reasoning", "reasoning_details")):
    return "the answer is empty after the model's thoughts"
  if message.get("tool_calls"):
    return "the answer is a call of a tool"
  return None


def _tokens(body: Any) -> tuple[int | None, int | None]:
  """Returns the tokens of prompt and answer.

  Some servers count thoughts in total_tokens alone; they are billed as the answer's.
  """
  usage = body.get("usage") if isinstance(body, Mapping) else None
  usage = usage if isinstance(usage, Mapping) else {}
  prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
  total = _count(usage.get("total_tokens"))
  if total is not None and prompt is not None:
    completion = max(completion or 0, total - prompt)
  elif total is not None and completion is not None:
    prompt = max(total - completion, 0)
  return prompt, completion


def _billed(body: Any) -> Billed | None:
  prompt, completion = _tokens(body)
  return Billed(prompt, completion or 0) if prompt is not None else None


def billed_of(content: bytes) -> Billed | None:
  """Returns the usage in any body, an error's too; None if it has none."""
  try:
    return _billed(json.loads(content))
  except (ValueError, RecursionError):
    return None


def _error_of(value: Any) -> Any:
  """Returns the error object of a body or a choice, or None."""
  if isinstance(value, list):
    return _error_of(value[0]) if value and isinstance(value[0], Mapping) else None
  error = value.get("error")
  return error if error else None


def _status_of(error: Any) -> int:
  """Returns an error's own HTTP status; 500 if it has none."""
  for key in ("code", "status", "status_code"):
    value = error.get(key) if isinstance(error, Mapping) else None
    if isinstance(value, str) and value.isdecimal():
      value = int(value[:4])
    if type(value) is int and 400 <= value < 600:
      return value
  return 500


def _name(value: Any) -> str | None:
  """Returns a short text of the server as one line."""
  if not isinstance(value, str):
    return None
  return one_line(value.encode("utf-8", "replace").decode("utf-8"), _MAX_NAME_CHARACTERS)


def _count(value: Any) -> int | None:
  return value if type(value) is int and 0 <= value < 2**40 else None
