"""Mentions of labels and cut-off endings, in sentences such as teachers write."""

import pytest

from dss_jax.data.rationale_checks import ends_mid_sentence, mentions


@pytest.mark.parametrize(
  ("rationale", "label", "expected"),
  [
    ("So it is neutral.", "neutral", True),
    ("So it is NEUTRAL", "Neutral", True),
    ("I know that.", "no", False),
    ("No, it is not.", "no", True),
    ("notes", "no", False),
    ("only wooded areas have it", "wooded area", True),
    ("only wooded\n  area!", "wooded area", True),
    ("the area is wooded", "wooded area", False),
    ("(84 / 2) is 42", "( 84.0 / 2.0 )", True),
    ("2 rounds. 84 / 2 = 42.", "( 84.0 / 2.0 )", True),
    ("184 / 2 = 92", "( 84.0 / 2.0 )", False),
    ("84 / 25", "( 84.0 / 2.0 )", False),
    ("84 / 2.5", "( 84.0 / 2.0 )", False),
    ("2 / 84", "( 84.0 / 2.0 )", False),
    ("there are 42 of them", "42.0", True),
    ("there are 420 of them", "42", False),
    ("there are 42.", "42", True),
    ("costs 42.5 in all", "42.0", False),
    ("答えは森です", "森", True),
    ("答えは海です", "森", False),
    ("so :) it is", ":)", True),
    ("a.b", "a+b", True),
  ],
)
def test_mentions(rationale, label, expected):
  assert mentions(rationale, label) is expected


@pytest.mark.parametrize(
  "text", ["It is so.", "Is it?", 'He said "so"', "84 / 2 = 42", "(84 / 2)", "so.\n", "森です", "…"]
)
def test_complete_endings(text):
  assert not ends_mid_sentence(text)


@pytest.mark.parametrize(
  "text", ["The answer is", "one, two,", "(120 /", "because:", "x = ", "ja ñ"]
)
def test_cut_off_endings(text):
  assert ends_mid_sentence(text)
