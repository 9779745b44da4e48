"""What counts as blank, as whole Unicode, and as a label."""

import numpy as np
import pytest

from dss_jax.data.texts import is_blank, is_unicode, label_as_text, without_invisible

INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f\u061c\u180e\ufe0f\U000e0101"
FILLERS = "\u3164\u115f\u1160\uffa0\u2800\u034f"
SPACES = " \t\n\x0b\x0c\r\x1c\x85\xa0\u2003\u2028\u2029\u3000"
CONTROLS = "\x00\x07\x1b\x7f\x9b\u202e\u2066\u2069"


@pytest.mark.parametrize("character", ["", *INVISIBLE, *FILLERS, *SPACES, *CONTROLS])
def test_what_cannot_be_seen_is_blank(character):
  assert is_blank(character)
  assert is_blank(f" {character}\u200b")
  assert not is_blank(f"{character}a{character}")


@pytest.mark.parametrize(
  "character", [*"a.-_0", "\u597d", "\u0301", "\U0001f600", "\ufffd", "\u2764"]
)
def test_what_can_be_seen_is_not_blank(character):
  assert not is_blank(character)


def test_invisible_characters_are_left_out():
  assert without_invisible("y\u200be\u00ads\ufeff or\tno") == "yes or\tno"


def test_half_a_character_is_not_unicode():
  assert is_unicode("a\U0001f600")
  assert not is_unicode("a\ud83d")


@pytest.mark.parametrize(
  ("value", "text"),
  [(1, "1"), (False, "false"), (0.5, "0.5"), (np.int64(3), "3"), (np.bool_(True), "true"),
   ("1", "1"), (None, None), ([1], [1])],
)  # fmt: skip
def test_numbers_become_labels_as_json_writes_them(value, text):
  assert label_as_text(value) == text
