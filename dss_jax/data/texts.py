"""The texts of a row: what counts as blank, what cannot be tokenised, what is no label."""

import json
import unicodedata
from typing import Any

import numpy as np

# Letters and marks that show nothing: fillers, selectors of a variant, an empty Braille cell.
_SHOWS_NOTHING = frozenset(
  "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
) | {chr(code) for code in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))}


def is_blank(text: str) -> bool:
  """Returns whether nothing in the text can be seen: spaces, controls, zero-width characters."""
  return all(character.isspace() or _is_invisible(character) for character in text)


def without_invisible(text: str) -> str:
  """Returns the text without the characters that show nothing and take no room."""
  if text.isascii() and text.isprintable():
    return text
  return "".join(
    character for character in text if character.isspace() or not _is_invisible(character)
  )


def is_unicode(text: str) -> bool:
  """Returns False for an unpaired surrogate, which is valid JSON but cannot be tokenised."""
  return not any("\ud800" <= character <= "\udfff" for character in text)


def label_as_text(value: Any) -> Any:
  """Returns a number or a boolean as JSON writes it (1, 0.5, true); another value as it is."""
  if isinstance(value, np.generic):
    value = value.item()
  return json.dumps(value) if isinstance(value, bool | int | float) else value


def _is_invisible(character: str) -> bool:
  return unicodedata.category(character) in ("Cc", "Cf") or character in _SHOWS_NOTHING
