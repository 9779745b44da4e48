"""Pages of a list: filter, orderBy, pageSize and pageToken of a request's query.

A page goes on after the last resource of the one before, by its place in the order, so a resource
that comes or goes between two pages moves no other.
"""

import base64
import datetime
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from dss_jax.jobs.api.filters import Field, find_field, parse_filter, time_of
from dss_jax.jobs.api_error import invalid

_DEFAULT_SIZE = 100
_MAX_SIZE = 1000
# Of a page's JSON; a page has one resource at least.
_MAX_CHARACTERS = 2**23
_MAX_TOKEN = 4096


def page(
  resources: Iterable[Mapping[str, Any]],
  query: Mapping[str, str],
  fields: Mapping[str, Field],
  *,
  key: str,
  default_order: str = "create_time desc",
  max_size: int = _MAX_SIZE,
) -> dict[str, Any]:
  """Returns the page of a list that a request asks for: {key: [...], "nextPageToken"}.

  Args:
    resources: their JSON, each with a "name" that no other has.
    query: of the request; what is not of a list (readMask, $alt, ...) is passed over.
    fields: that filter and orderBy may name.
    key: of the list in the answer.
    max_size: the most resources of a page.

  Raises:
    ApiError: INVALID_ARGUMENT for a wrong value, or a token of another list.
  """
  predicate = parse_filter(query.get("filter", ""), fields)
  order_text = query.get("orderBy", "").strip()
  order = _parse_order(order_text or default_order, fields)
  digest = hashlib.sha256(
    json.dumps([key, query.get("filter", ""), order_text]).encode()
  ).hexdigest()[:16]
  size = min(_parse_size(query.get("pageSize", "")), max_size)
  position = functools.cmp_to_key(functools.partial(_compare, order))
  found = sorted(filter(predicate, resources), key=lambda each: position(_place(each, order)))
  if token := query.get("pageToken", ""):
    last = position(_parse_token(token, digest, order))
    found = [each for each in found if last < position(_place(each, order))]
  size = _fitting(found[:size])
  content: dict[str, Any] = {key: found[:size]} if found else {}
  if len(found) > size:
    content["nextPageToken"] = _token(digest, _place(found[size - 1], order))
  return content


def _parse_size(text: str) -> int:
  if text and not (text.isascii() and text.isdecimal() and len(text) < 10):
    raise invalid(f"pageSize: must be a whole number from 0 on, not {text[:20]!r}")
  return min(int(text or 0) or _DEFAULT_SIZE, _MAX_SIZE)


def _fitting(resources: list[Mapping[str, Any]]) -> int:
  """Returns how many of a page's resources are sent."""
  characters = 0
  for count, resource in enumerate(resources):
    characters += len(json.dumps(resource))
    if count and characters > _MAX_CHARACTERS:
      return count
  return len(resources)


def _parse_order(text: str, fields: Mapping[str, Field]) -> list[tuple[Field, bool]]:
  """Returns the fields of an order, and whether each is descending."""
  order = []
  for part in text[:_MAX_TOKEN].split(","):
    name, _, direction = part.strip().partition(" ")
    field = find_field(name, fields, "orderBy")
    if direction.strip() not in ("", "asc", "desc") or field.kind == "labels":
      raise invalid(f"orderBy: {part.strip()[:70]!r} must be like create_time, or create_time desc")
    order.append((field, direction.strip() == "desc"))
  return order


def _place(resource: Mapping[str, Any], order: list[tuple[Field, bool]]) -> list[Any]:
  """Returns the values that a resource is sorted by, its name last."""
  return [*(field.value(resource) for field, _ in order), resource["name"]]


def _compare(order: list[tuple[Field, bool]], left: list[Any], right: list[Any]) -> int:
  directions = [is_descending for _, is_descending in order]
  for is_descending, one, other in zip([*directions, False], left, right, strict=True):
    if one != other:
      # What has no value comes first.
      is_before = one is None or (other is not None and one < other)
      return 1 if is_before == is_descending else -1
  return 0


def _token(digest: str, place: list[Any]) -> str:
  values = [value.isoformat() if isinstance(value, datetime.datetime) else value for value in place]
  return base64.urlsafe_b64encode(json.dumps([digest, values]).encode()).decode().rstrip("=")


def _parse_token(token: str, digest: str, order: list[tuple[Field, bool]]) -> list[Any]:
  try:
    if len(token) > _MAX_TOKEN:
      raise ValueError
    content = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    own, values = json.loads(content)
    if own != digest or len(values) != len(order) + 1 or not isinstance(values[-1], str):
      raise ValueError
    for at, (field, _) in enumerate(order):
      if values[at] is not None and not isinstance(values[at], str):
        raise ValueError
      if field.kind == "time" and values[at] is not None:
        values[at] = time_of(values[at])
    return values
  except (ValueError, TypeError, RecursionError):
    raise invalid(
      "pageToken: is not of this list; send the nextPageToken of the last page, with the same"
      " filter and orderBy"
    ) from None
