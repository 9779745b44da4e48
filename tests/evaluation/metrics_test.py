"""Scores of rows by hand and by the packages that define them."""

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from dss_jax.evaluation.metrics import bag_f1, find_classes, normalised, rouge, row_scores


def scores_of(target, prediction):
  return {name: float(each[0]) for name, each in row_scores([target], [prediction]).items()}


@pytest.mark.parametrize(
  ("target", "prediction", "exact", "f1"),
  [
    # As the official script compares: case, articles, punctuation and spaces do not count.
    ("The Norman dynasty", "norman  dynasty.", 1.0, 1.0),
    # 2 shared of 3 and 4 words (the article is dropped): 2 * 2 / 7.
    ("Duke of Normandy", "the Duke of all Normans", 0.0, 4 / 7),
    ("in the late 1990s", "late 1990s", 0.0, 0.8),
    # A word twice is shared as often as both have it.
    ("red red blue", "red red red", 0.0, 2 / 3),
    ("yes", "no", 0.0, 0.0),
    # Nothing is left of either; of one only.
    ("the", "a", 1.0, 1.0),
    ("the", "yes", 0.0, 0.0),
  ],
)
def test_squad_by_hand(target, prediction, exact, f1):
  scores = scores_of(target, prediction)
  assert scores["squad_exact_match"] == exact
  assert scores["squad_f1"] == pytest.approx(f1)


def test_squad_keeps_words_that_begin_like_articles():
  assert normalised("An anthem, a theme: the theatre!") == "anthem theme theatre"


def test_exact_match_and_token_f1_take_texts_as_they_are():
  scores = scores_of("The cat", "the cat")
  assert (scores["exact_match"], scores["token_f1"], scores["squad_f1"]) == (0.0, 0.5, 1.0)
  assert bag_f1([], []) == 1.0
  assert bag_f1(["a"], []) == 0.0


def test_values_are_compared_if_a_label_has_one():
  scores = row_scores(["( 84.0 / 2.0 )", "7", "many"], ["42", "(3 + 5)", "many"])
  assert scores["value_match"].tolist() == [1.0, 0.0, 0.0]
  assert "value_match" not in row_scores(["many"], ["7"])


def test_rouge_is_that_of_its_package():
  targets = ["the cat sat on the mat", "a dog barks", "yes"]
  predictions = ["the cat lay on a mat", "dogs bark", ""]
  scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
  got = rouge(targets, predictions)
  for i, pair in enumerate(zip(targets, predictions, strict=True)):
    for name, score in scorer.score(*pair).items():
      assert got[name][i] == score.fmeasure
  # Shared: the, cat, on, mat, of 6 and 6 words.
  assert got["rouge1"][0] == pytest.approx(4 / 6)


@pytest.fixture
def classified():
  """Predictions of three classes and of texts that are none."""
  generator = np.random.default_rng(0)
  targets = list(generator.choice(["yes", "no", "maybe"], 200, p=[0.6, 0.3, 0.1]))
  predictions = [
    target if generator.random() < 0.6 else str(generator.choice(["yes", "no", "?", ""]))
    for target in targets
  ]
  return targets, predictions


def test_classes_are_those_of_scikit_learn(classified):
  targets, predictions = classified
  classes = find_classes(targets, predictions)
  names = ["yes", "no", "maybe"]
  assert classes.names == names
  assert classes.macro_f1() == pytest.approx(
    f1_score(targets, predictions, labels=names, average="macro", zero_division=0)
  )
  known = [each if each in names else "other" for each in predictions]
  matrix = confusion_matrix(targets, known, labels=[*names, "other"])
  np.testing.assert_array_equal(classes.confusion, matrix[:3])
  wanted = precision_recall_fscore_support(targets, predictions, labels=names, zero_division=0)
  for number, row in enumerate(classes.figures()):
    got = (row["precision"], row["recall"], row["f1"], row["rows"])
    assert got == pytest.approx([each[number] for each in wanted])
    assert row["predicted"] == predictions.count(row["label"])


def test_the_macro_f1_of_some_rows(classified):
  targets, predictions = classified
  rows = np.random.default_rng(1).integers(0, 200, 200)
  wanted = f1_score(
    [targets[i] for i in rows],
    [predictions[i] for i in rows],
    labels=["yes", "no", "maybe"],
    average="macro",
    zero_division=0,
  )
  assert find_classes(targets, predictions).macro_f1(rows) == pytest.approx(wanted)


def test_free_text_has_no_classes():
  assert find_classes(["a", "b", "c"], ["a", "b", "c"]) is None
  assert find_classes([str(n % 60) for n in range(600)], ["1"] * 600) is None
  assert find_classes(["a"] * 5, ["b"] * 5).names == ["a"]
