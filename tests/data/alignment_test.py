"""Positions of two vocabularies that have read the same text."""

import numpy as np
import pytest

from dss_jax.data.alignment import aligned_positions
from dss_jax.data.vocabularies import load_vocabulary


@pytest.fixture(scope="module")
def byte_vocabulary():
  return load_vocabulary("bytes")


def ids_of(vocabulary, text):
  return np.array([*vocabulary.encode(text), vocabulary.eos_id])


def test_pieces_are_aligned_with_their_first_bytes(byte_vocabulary, small_vocabulary):
  """Each piece begins where the bytes before it have been read; the end is the end."""
  text = "the red box 7"
  pieces, letters = ids_of(small_vocabulary, text), ids_of(byte_vocabulary, text)
  found = aligned_positions(pieces, small_vocabulary, letters, byte_vocabulary)
  starts = [len(small_vocabulary.decode(pieces[:place])) for place in range(len(pieces))]
  # The first piece may be the space before the text, which adds nothing to it.
  is_first = np.array([starts.index(start) == place for place, start in enumerate(starts)])
  np.testing.assert_array_equal(found, np.where(is_first, starts, -1))
  assert found[0] == 0
  assert found[-1] == len(text)
  back = aligned_positions(letters, byte_vocabulary, pieces, small_vocabulary)
  assert np.flatnonzero(back >= 0).tolist() == sorted(set(starts))
  assert [found[place] for place in back if place >= 0] == sorted(set(starts))


def test_no_position_within_a_character_is_aligned(byte_vocabulary):
  letters = ids_of(byte_vocabulary, "aé.")
  found = aligned_positions(letters, byte_vocabulary, letters, byte_vocabulary)
  # After "a" the first of the two bytes is next; the second one has no text of its own.
  assert found.tolist() == [0, 1, -1, 3, 4]


def test_other_texts_are_aligned_as_far_as_they_are_equal(byte_vocabulary):
  one, other = ids_of(byte_vocabulary, "abcd"), ids_of(byte_vocabulary, "abXd")
  found = aligned_positions(one, byte_vocabulary, other, byte_vocabulary)
  assert found.tolist() == [0, 1, 2, -1, -1]


def test_a_truncated_teacher(byte_vocabulary):
  one, cut = ids_of(byte_vocabulary, "abcd"), ids_of(byte_vocabulary, "ab")
  found = aligned_positions(one, byte_vocabulary, cut, byte_vocabulary)
  assert found.tolist() == [0, 1, 2, -1, -1]
