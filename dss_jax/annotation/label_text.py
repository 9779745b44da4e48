r"""Removes what models write around a label: emphasis, quotes, LaTeX, tags, punctuation."""

import re

# A longer text is no label.
_MAX_CHARACTERS = 1000
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」", "『": "』"}
_TAG = re.compile(r"<(\w+)>\s*(.*?)\s*</\1>", re.I | re.S)
_COMMAND = re.compile(r"\\(?:boxed|fbox|text\w*|math(?:rm|bf|it|sf|tt|bb)|mbox|emph)\s*\{")
_MATH = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_ESCAPED = re.compile(r"\\([$%&#_{}])")
_EMPHASISED = re.compile(r"(\*\*|__)(.+?)\1")
_EMPHASIS = "*_`~ \t"
_PUNCTUATION = ".,;:!。．，；：！"
# "U.S.", "p.m.": the last full stop is a part of the word.
_ABBREVIATION = re.compile(r"(?:\b[A-Za-z]\.){2,}$")


def plain_label(line: str) -> str:
  r"""Returns a label without its ornaments: 18 for `**$\boxed{18}$**.`, yes for `"Yes!"`."""
  label = line.strip()
  if len(label) > _MAX_CHARACTERS:
    return label
  label = _ESCAPED.sub(r"\1", _EMPHASISED.sub(r"\2", label))
  while True:
    plain = _peeled(label)
    if plain == label:
      return label
    label = plain


def _peeled(label: str) -> str:
  """Removes the outermost ornament."""
  label = label.strip(_EMPHASIS)
  if label[-1:] in _PUNCTUATION and label[-2:-1] != "." and not _ABBREVIATION.search(label):
    label = label[:-1].rstrip()
  if len(label) > 1 and _QUOTES.get(label[0]) == label[-1] and label[0] not in label[1:-1]:
    return label[1:-1].strip()
  tag = _TAG.fullmatch(label)
  if tag:
    return tag[2]
  for opening, closing in _MATH:
    inner = label[len(opening) : -len(closing)]
    is_math = label.startswith(opening) and label.endswith(closing) and len(label) > len(opening)
    if is_math and opening not in inner and closing not in inner:
      return inner.strip()
  command = _COMMAND.match(label)
  if command and closing_brace(label, command.end()) == len(label) - 1:
    return label[command.end() : -1].strip()
  return label


def closing_brace(text: str, start: int) -> int:
  """Returns the position of the brace that closes the one before `start`; -1 if none does."""
  depth = 1
  for position in range(start, len(text)):
    if text[position] == "{":
      depth += 1
    elif text[position] == "}":
      depth -= 1
      if not depth:
        return position
  return -1
