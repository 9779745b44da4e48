"""Positions of two tokenisations of one text at which the same text has been read."""

import numpy as np

from dss_jax.data.vocabularies import Vocabulary


def aligned_positions(
  ids: np.ndarray, vocabulary: Vocabulary, other_ids: np.ndarray, other: Vocabulary
) -> np.ndarray:
  """Returns, for each position, the one of the other tokenisation before which the text is equal.

  Position i predicts ids[i] after the text of ids[:i]. Where several positions have read the same
  text, as within a character of several bytes, the first one alone has read nothing else.

  Returns:
    int64 [len(ids)], -1 where no position of the other has read exactly the same text.
  """
  positions = {text: place for place, text in _first_places(other_ids, other)}
  aligned = np.full(len(ids), -1)
  for place, text in _first_places(ids, vocabulary):
    aligned[place] = positions.get(text, -1)
  return aligned


def _first_places(ids: np.ndarray, vocabulary: Vocabulary) -> list[tuple[int, str]]:
  """Returns the first place at which each text has been read."""
  known = list(map(int, ids))
  first: dict[str, int] = {}
  for place in range(len(known)):
    first.setdefault(vocabulary.decode(known[:place]), place)
  return [(place, text) for text, place in first.items()]
