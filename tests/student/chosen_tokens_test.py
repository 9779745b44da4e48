"""The texts of an answer's tokens and of the likely ones beside them."""

import pytest

from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.student.chosen_tokens import ChosenToken, ChosenTokens, service_form

WORDS = {3: "a", 4: " b", 5: " c", 6: " b"}


def texts_after(before, ids):
  """Words with a space before them, but at the start."""
  return [WORDS[one] if before else WORDS[one].lstrip() for one in ids]


def test_parts_add_up_to_the_answer():
  ids, logs = [3, 4, 5], [-0.1, -0.2, -0.3]
  whole = ChosenTokens(texts_after).add(ids, logs, [])
  assert [(one.text, one.offset) for one in whole] == [("a", 0), (" b", 1), (" c", 3)]
  in_parts = ChosenTokens(texts_after)
  parts = [in_parts.add(ids[:1], logs[:1], []), in_parts.add(ids[1:], logs[1:], [])]
  assert [*parts[0], *parts[1]] == whole


def test_alternatives_stand_where_the_token_does():
  tokens = ChosenTokens(texts_after).add(
    [3, 4], [-0.1, -0.2], [[(3, -0.1), (4, -2.0)], [(5, -0.1), (4, -0.2), (6, -3.0)]]
  )
  assert tokens[0] == ChosenToken("a", 0, -0.1, [("a", -0.1), ("b", -2.0)])
  assert tokens[1].alternatives == [(" c", -0.1), (" b", -0.2), (" b", -3.0)]
  assert list(tokens[1].likeliest().items()) == [(" c", -0.1), (" b", -0.2)]


def test_the_service_lists_alternatives_only_if_there_are_any():
  plain = ChosenTokens(texts_after).add([3], [-0.1], [])
  assert service_form(plain) == {"tokens": ["a"], "tokenLogProbs": [-0.1]}
  listed = ChosenTokens(texts_after).add([3], [-0.1], [[(4, -0.05), (3, -0.1)]])
  assert service_form(listed)["topLogProbs"] == [{"b": -0.05, "a": -0.1}]


@pytest.mark.parametrize("text", ["the red box 12", "the blue box " * 20])
def test_texts_of_pieces_add_up_to_the_text(small_vocabulary, text):
  ids = [*small_vocabulary.encode(text), small_vocabulary.eos_id]
  tokens = ChosenTokens(small_vocabulary.texts_after).add(ids, [0.0] * len(ids), [])
  assert "".join(token.text for token in tokens) == f"{text.strip()}</s>"


def test_texts_of_bytes_add_up_to_the_text():
  vocabulary = load_vocabulary("bytes")
  text = "zwölf 日本 " * 10
  ids = vocabulary.encode(text)
  tokens = ChosenTokens(vocabulary.texts_after).add(ids, [0.0] * len(ids), [])
  assert "".join(token.text for token in tokens) == text
