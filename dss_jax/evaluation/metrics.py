"""Scores of predictions: each row's own, and those of labels that are classes.

A score of a row is a number from 0 to 1; the score of a data set is its mean over the rows.
"""

import collections
import dataclasses
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from dss_jax.data.arithmetic import same_value, value_of

# Labels are classes if there are at most so many, each with so many rows on average.
MAX_CLASSES = 50
ROWS_A_CLASS = 5

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def row_scores(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, np.ndarray]:
  """Returns every score of each row, float64 [rows], by name.

  `exact_match`; `token_f1`, over words; `squad_exact_match` and `squad_f1`, the same after
  SQuAD's normalisation; `rouge1`, `rouge2`, `rougeL`; and `value_match`, the equality of numbers
  and arithmetic expressions, if a target is one.
  """
  functions: dict[str, Callable[[str, str], float]] = {
    "exact_match": str.__eq__,
    "token_f1": lambda target, prediction: bag_f1(target.split(), prediction.split()),
    "squad_exact_match": lambda target, prediction: normalised(target) == normalised(prediction),
    "squad_f1": lambda target, prediction: bag_f1(
      normalised(target).split(), normalised(prediction).split()
    ),
  }
  if any(value_of(target) is not None for target in targets):
    functions["value_match"] = same_value
  pairs = list(zip(targets, predictions, strict=True))
  scores = {
    name: np.array([float(function(*pair)) for pair in pairs])
    for name, function in functions.items()
  }
  return {**scores, **rouge(targets, predictions)}


def bag_f1(target: Sequence[str], prediction: Sequence[str]) -> float:
  """Computes 2 * shared / (tokens of both), the F1 of two bags of tokens.

  Two empty bags are equal; an empty one and another share nothing (as SQuAD 2's script).
  """
  if not target or not prediction:
    return float(not target and not prediction)
  shared = (collections.Counter(target) & collections.Counter(prediction)).total()
  return 2.0 * shared / (len(target) + len(prediction))


def normalised(text: str) -> str:
  """Returns a text as SQuAD's evaluation compares it (Rajpurkar et al. 2016).

  Lower case, without punctuation and English articles, words separated by single spaces.
  """
  text = text.lower().translate(_PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", text).split())


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, np.ndarray]:
  """Returns the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, as the rouge-score package has them.

  Without stemming. The package knows the letters a to z and digits only: of texts in other
  scripts the scores are 0.
  """
  from rouge_score.rouge_scorer import RougeScorer

  scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=False)
  scores = [
    scorer.score(target, prediction)
    for target, prediction in zip(targets, predictions, strict=True)
  ]
  return {name: np.array([score[name].fmeasure for score in scores]) for name in ROUGE_TYPES}


@dataclasses.dataclass(frozen=True)
class Classes:
  """Labels that are classes, and the confusion of predictions.

  Attributes:
    names: the labels, by falling number of rows.
    confusion: int64 [classes, classes + 1]: rows of each label by prediction; the last column
      counts predictions that are no class.
    codes: int64 [rows, 2]: each row's place in `confusion`.
  """

  names: list[str]
  confusion: np.ndarray
  codes: np.ndarray

  def figures(self) -> list[dict[str, object]]:
    """Returns a dict a class: `label`, `rows`, `predicted`, `precision`, `recall`, `f1`."""
    right = self.confusion.diagonal()
    rows, predicted = self.confusion.sum(axis=1), self.confusion[:, :-1].sum(axis=0)
    return [
      {
        "label": name,
        "rows": int(rows[i]),
        "predicted": int(predicted[i]),
        "precision": float(right[i] / max(predicted[i], 1)),
        "recall": float(right[i] / max(rows[i], 1)),
        "f1": float(2 * right[i] / max(rows[i] + predicted[i], 1)),
      }
      for i, name in enumerate(self.names)
    ]

  def macro_f1(self, rows: np.ndarray | None = None) -> float:
    """Computes the mean of the classes' F1 over all rows, or over the given row numbers.

    A class that is neither a label nor a prediction of the given rows counts as 0.
    """
    size = len(self.names)
    codes = self.codes if rows is None else self.codes[rows]
    cells = np.bincount(codes[:, 0] * (size + 1) + codes[:, 1], minlength=size * (size + 1))
    confusion = cells.reshape(size, size + 1)
    both = confusion.sum(axis=1) + confusion[:, :-1].sum(axis=0)
    return float(np.mean(2 * confusion.diagonal() / np.maximum(both, 1)))


def find_classes(targets: Sequence[str], predictions: Sequence[str]) -> Classes | None:
  """Returns the classes of the labels, or None if the labels are free text."""
  counts = collections.Counter(targets)
  if len(counts) > MAX_CLASSES or len(targets) < ROWS_A_CLASS * len(counts):
    return None
  names = sorted(counts, key=lambda name: (-counts[name], name))
  places = {name: place for place, name in enumerate(names)}
  codes = np.array(
    [
      (places[target], places.get(prediction, len(names)))
      for target, prediction in zip(targets, predictions, strict=True)
    ]
  )
  confusion = np.zeros((len(names), len(names) + 1), np.int64)
  np.add.at(confusion, (codes[:, 0], codes[:, 1]), 1)
  return Classes(names, confusion, codes)
