"""Checks of a rationale's text: whether it mentions its label, whether it is cut off."""

import re

_NOT_WORD = re.compile(r"[\W_]+")
_BRACKETS = re.compile(r"[()\[\]{}]")
_AROUND_OPERATOR = re.compile(r"\s*([+\-*/=<>^%])\s*")
_WHOLE_NUMBER = re.compile(r"(?<=\d)\.0+(?!\d)")
_UNFINISHED_ENDS = frozenset(",;:-–—([{<&+*/=^\\")


def mentions(rationale: str, label: str) -> bool:
  """Returns whether the rationale has the label as whole words, ignoring case and punctuation.

  A plural counts: "wooded areas" mentions "wooded area". A part of a word does not: "know"
  does not mention "no". Formulas are compared without spaces and brackets, and 84.0 is 84.
  """
  begin = rationale.find(label)
  if begin >= 0:
    end = begin + len(label)
    if not (rationale[begin - 1 : begin].isalnum() or rationale[end : end + 1].isalnum()):
      return True
  words, sought = (_NOT_WORD.sub(" ", text.casefold()).strip() for text in (rationale, label))
  # Scripts without spaces have no word boundaries.
  if not sought or not sought.isascii():
    return label.casefold().strip() in rationale.casefold()
  ends = (" ", "s ", "es ") if len(sought) > 2 else (" ",)
  if any(f" {sought}{end}" in f" {words} " for end in ends):
    return True
  if not any(character.isdigit() for character in label):
    return False
  words, sought = (_formula(text) for text in (rationale, label))
  return re.search(rf"(?<![\d.]){re.escape(sought)}(?!\d|\.\d)", words) is not None


def ends_mid_sentence(text: str) -> bool:
  """Returns whether the text ends in a letter, a comma, an opening bracket or an operator.

  A number, a closing bracket or a quotation mark may end a rationale. Scripts without upper
  and lower case are often written without a full stop, so their letters count as an end.
  """
  last = text.rstrip()[-1:]
  return last in _UNFINISHED_ENDS or last.lower() != last.upper()


def _formula(text: str) -> str:
  spaced = _BRACKETS.sub(" ", _WHOLE_NUMBER.sub("", text.casefold()))
  return _AROUND_OPERATOR.sub(r"\1", spaced).strip()
