"""Several answers to one row: the label most of them give, and the share that gives it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Vote(NamedTuple):
  """The outcome of a vote.

  Attributes:
    label: the label with the most votes, as its first voter spelt it; None without a vote.
    share: its votes over all answers, those without a label included (0 without answers).
    voters: the answers, by their number, that gave it.
  """

  label: str | None
  share: float
  voters: tuple[int, ...]


def vote(labels: Sequence[str | None], same_label: Callable[[str, str], bool]) -> Vote:
  """Counts labels, one an answer; None is an answer without a label.

  Self-consistency (Wang et al. 2023, section 2) with the plain majority. Of equally many votes
  the label that came first wins, so that a vote does not depend on chance.
  """
  groups: list[list[int]] = []
  for number, label in enumerate(labels):
    if label is None:
      continue
    for group in groups:
      first = labels[group[0]]
      assert first is not None
      if same_label(first, label):
        group.append(number)
        break
    else:
      groups.append([number])
  if not groups:
    return Vote(None, 0.0, ())
  winner = max(groups, key=len)
  return Vote(labels[winner[0]], len(winner) / len(labels), tuple(winner))
