"""The shipped tasks on single rows and teacher answers in the published format."""

import pytest

from dss_jax.data.task_files import UnparsableAnswer, load_task

CQA, SVAMP, ESNLI = load_task("cqa"), load_task("svamp"), load_task("esnli")


@pytest.mark.parametrize(
  ("text", "label"),
  [
    ("It swims. So the answer is (b) pond.\n\nQ: What flies?", "pond"),
    ("It swims. So the answer is (b) pond", "pond"),
    ("It swims. So the answer is (b) a pond or lake.", "a pond or lake"),
    ("It swims. So the answer is (a) washington d.c..", "washington d.c."),
    ("It swims. So the answer is either (a) pond or (b) lake.", None),
    ("It swims. So the answer is (a) pond, (b) lake, or (c) sea.", None),
  ],
)
def test_cqa_answers(text, label):
  assert CQA.parse_answer(text) == ("It swims.", label)


@pytest.mark.parametrize(
  "text",
  [
    "",
    "It swims.",
    "It swims. So the answer is one of these four.",
    "It swims.\n\nQ: What flies? So the answer is (a) bird.",
  ],
)
def test_cqa_texts_without_an_answer(text):
  with pytest.raises(UnparsableAnswer, match="So the answer is"):
    CQA.parse_answer(text)


@pytest.mark.parametrize(
  ("text", "label"),
  [
    ("He had 8. The answer is (84 / 2).\n\nQ: There are 15 trees", "(84 / 2)"),
    ("He had 8. The answer is (16 * 17) * 4.", "(16 * 17) * 4"),
    ("He had 8. The answer is (some - 8).", None),
    ("He had 8. The answer is (8 / 4) and (6 / 4).", None),
    ("He had 8. The answer is (8 / 0).", None),
  ],
)
def test_svamp_answers(text, label):
  assert SVAMP.parse_answer(text) == ("He had 8.", label)


@pytest.mark.parametrize(
  "text", ["", "He had 8.", "He had 8. The answer is (9 + 6", "8.\n\nQ: 9? The answer is (9)."]
)
def test_svamp_texts_without_an_answer(text):
  with pytest.raises(UnparsableAnswer, match="The answer is"):
    SVAMP.parse_answer(text)


def test_svamp_metric_counts_values_and_strings():
  targets = ["( 84.0 / 2.0 )", "( 1.0 + 1.0 )", "( 3.0 * 2.0 )", "( 5.0 - 1.0 )"]
  predictions = ["(84 / 2)", "( 1.0 + 1.0 )", "( 3.0 + 2.0 )", "junk"]
  assert SVAMP.metric(targets, predictions) == {"accuracy": 50.0, "exact_match": 25.0}


def test_esnli_answers():
  text = "They hug.\nAnswer: neutral\n\nPremise: Two women\nHypothesis: x"
  assert ESNLI.parse_answer(text) == ("They hug.", "neutral")
  for bad in ("They hug.", "They hug.\nAnswer: maybe", "Hug.\n\nPremise: a\nAnswer: neutral"):
    with pytest.raises(UnparsableAnswer):
      ESNLI.parse_answer(bad)


def test_accuracy_is_exact_match_in_percent():
  for task in (CQA, ESNLI):
    assert task.metric(["a", "b", "c", "d"], ["a", "B", "c", "x"]) == {"accuracy": 50.0}
    assert task.metric([], []) == {"accuracy": 0.0}


def test_input_and_label_of_published_rows():
  assert CQA.to_row(
    {"question": "Where?", "choices": ["a pond", "b", "c", "d", "e"], "answer": "a pond"}
  ) == {
    "input_text": "Where?\nAnswer Choices:\n(a) a pond\n(b) b\n(c) c\n(d) d\n(e) e",
    "output_text": "a pond",
  }
  row = ESNLI.to_row({"premise": "A man.", "hypothesis": "A cat.", "label": 2})
  assert row["input_text"].endswith("\nPremise: A man.\nHypothesis: A cat.")
  assert row["output_text"] == "contradiction"
  assert SVAMP.to_row({"input": "2 and 2?", "label": "( 2.0 + 2.0 )"}) == {
    "input_text": "2 and 2?",
    "output_text": "( 2.0 + 2.0 )",
  }


@pytest.mark.parametrize("nothing", [None, -1, -1.0, "-", "", " ", float("nan")])
def test_a_published_value_for_no_label_is_never_a_class(nothing):
  rows = (
    CQA.to_row({"question": "Where?", "choices": list("vwxyz"), "answer": nothing}),
    ESNLI.to_row({"premise": "A man.", "hypothesis": "A cat.", "label": nothing}),
    SVAMP.to_row({"input": "2 and 2?", "label": nothing}),
  )
  assert [row["output_text"] for row in rows] == [None] * 3


def test_a_class_may_be_a_number_or_its_name_and_nothing_else():
  for label in (1, 1.0, "neutral"):
    row = ESNLI.to_row({"premise": "", "hypothesis": "", "label": label})
    assert row["output_text"] == "neutral"
  for label in (3, -2, 0.5, "maybe"):
    with pytest.raises(KeyError):
      ESNLI.to_row({"premise": "", "hypothesis": "", "label": label})
