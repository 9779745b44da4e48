"""Makes a model's text plain: no thoughts, no control characters, one kind of line break."""

import re

_LINE_BREAK = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Control characters but tab and line feed; characters of format but the joiners, which emoji and
# several scripts need: soft hyphen, zero width, marks and overrides of direction, tags; surrogates.
_UNSEEN = re.compile(
  "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
  "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)

_TAGS = r"(?:think|thinking|thought|thoughts|seed:think)"
# Qwen, DeepSeek and Seed; Magistral; Kimi; OpenThinker; OpenAI's open models.
_OPENING = (
  rf"<{_TAGS}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>"
  r"|<\|channel\|>(?:analysis|commentary)[^<]*<\|message\|>"
)
_CLOSING = (
  rf"</{_TAGS}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>final[^<]*<\|message\|>"
)
_TAG = re.compile(f"(?P<opening>{_OPENING})|(?P<closing>{_CLOSING})", re.I)


def plain_answer(text: str) -> str | None:
  """Returns the answer in a model's text; None if its thoughts are not finished."""
  return _without_thoughts(_UNSEEN.sub("", _LINE_BREAK.sub("\n", text)))


def _without_thoughts(text: str) -> str | None:
  """Returns the text outside the thoughts; None if the thoughts are not finished.

  Some chat templates write the opening tag into the prompt, so that an answer begins within the
  thoughts: all before a closing tag without an opening one is thought.
  """
  answer: list[str] = []
  start, is_thinking = 0, False
  for tag in _TAG.finditer(text):
    if tag["opening"]:
      if not is_thinking:
        answer.append(text[start : tag.start()])
      is_thinking = True
      continue
    if not is_thinking:
      answer.clear()
    start, is_thinking = tag.end(), False
  return None if is_thinking else "".join([*answer, text[start:]])
