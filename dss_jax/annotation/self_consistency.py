"""Self-consistency: a majority vote over the labels of several answers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Vote(NamedTuple):
  """The result of a vote.

  Attributes:
    label: the label with the most votes, in its first spelling; None without votes.
    share: its votes / all answers, including those without a label; 0 without answers.
    voters: indices of the answers with this label.
  """

  label: str | None
  share: float
  voters: tuple[int, ...]


def vote(labels: Sequence[str | None], same_label: Callable[[str, str], bool]) -> Vote:
  """Counts the labels of all answers; None is an answer without a label.

  Unweighted majority vote (self-consistency, Wang et al. 2023, section 2). In a tie the first
  label wins, so the result is deterministic.
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
