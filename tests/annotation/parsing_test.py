"""Parsing answers: each rule, then arbitrary text."""

import dataclasses
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dss_jax.annotation.parsing import MAX_ANSWER_CHARACTERS, Parsed, ParseRules
from dss_jax.annotation.prompts import Prompt, load_prompt, shipped_prompts
from dss_jax.data.arithmetic import value_of
from dss_jax.data.task_files import load_task

OPEN = ParseRules()
CLASSES = ParseRules(labels=("Yes", "No"))


@pytest.mark.parametrize(
  ("text", "rationale", "label"),
  [
    ("It rains.\nAnswer: wet", "It rains.", "wet"),
    ("  It rains.\n\n**Answer:** wet.\n\nI hope this helps!", "It rains.", "wet"),
    ('It rains. Answer: "very wet"', "It rains.", "very wet"),
    ("It rains.\nFinal answer: wet\n\nAnswer: **wet**", "It rains.", "wet"),
    ("It rains.\nThe answer is wet.", "It rains.", "wet"),
    ("It rains.\nAnswer: wet<|im_end|>\nAnswer: dry", "It rains.", "wet"),
    ("It rains.\nAnswer: wet\nText: Does it snow?\nAnswer: no", "It rains.", "wet"),
    ("It rains.\nAnswer: Washington D.C..", "It rains.", "Washington D.C.."),
  ],
)
def test_valid_answers(text, rationale, label):
  assert OPEN.parse(text, input_text="x", stop=["\nText:"]) == Parsed(rationale, label, "")


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("", "the answer is empty"),
    (" \n ", "the answer is empty"),
    ("\u3164", "the answer is empty"),
    ("\u3164\nAnswer: wet", "there is no reasoning before the answer"),
    ("\nText: again", 'no "Answer:" in the answer'),
    ("It rains.", 'no "Answer:" in the answer'),
    ("Answer: wet", "there is no reasoning before the answer"),
    ("It rains.\nAnswer:", 'nothing follows "Answer:"'),
    ("x" * (MAX_ANSWER_CHARACTERS + 1), "the answer has 32,769 characters, over 32,768"),
  ],
)
def test_unparsable_answers(text, reason):
  assert OPEN.parse(text, input_text="x", stop=["\nText:"]) == Parsed(None, None, reason)


@pytest.mark.parametrize(
  ("rules", "text", "reason"),
  [
    (OPEN, "Rain.\nAnswer: ...", "no letter and no digit"),
    (OPEN, "Rain.\nAnswer: {label}", "is a placeholder"),
    (OPEN, "Rain.\nAnswer: <your answer>", "is a placeholder"),
    (OPEN, "Rain.\nAnswer: " + "wet " * 60, "over 200"),
    (CLASSES, "Rain.\nAnswer: Maybe", "not allowed for the row: 'Maybe'"),
    (CLASSES, "Rain.\nAnswer: Yes and No", "not allowed"),
  ],
)
def test_answers_without_a_label_keep_their_rationale(rules, text, reason):
  parsed = rules.parse(text, input_text="x")
  assert (parsed.rationale, parsed.label) == ("Rain.", None)
  assert reason in parsed.reason


def test_a_label_gets_the_spelling_of_its_class():
  assert CLASSES.parse("Rain.\nAnswer: YES.", input_text="x").label == "Yes"


@pytest.mark.parametrize("rest", ["", ".", "\nIt", "\n\nBut wait"])
def test_a_label_of_an_answer_that_was_cut_off_is_rejected(rest):
  text = f"Rain.\nAnswer: wet{rest}"
  parsed = OPEN.parse(text, input_text="x", cut_off=True)
  assert (parsed.rationale, parsed.label) == ("Rain.", None)
  assert parsed.reason == "the answer was cut off, which may have changed its label"
  # The stop sequence shows that the answer was complete.
  stopped = OPEN.parse(text + "\nText: z", input_text="x", stop=["\nText:"], cut_off=True)
  assert stopped.label == "wet"


def test_of_several_different_labels_the_last_counts_and_is_marked():
  text = "It rains.\nAnswer: dry\nWait, it does.\nAnswer: wet"
  assert OPEN.parse(text, input_text="x") == Parsed(
    "It rains.\nAnswer: dry\nWait, it does.", "wet", "", has_several=True
  )
  assert not OPEN.parse("Rain.\nAnswer: wet\nAnswer: Wet", input_text="x").has_several


def test_ornaments_of_an_allowed_label_are_kept():
  rules = ParseRules(labels=("Yes!", "No!"))
  assert rules.parse("Rain.\nAnswer: Yes!", input_text="x").label == "Yes!"


def test_a_prompt_may_ask_for_the_exact_marker():
  rules = ParseRules(any_spelling=False)
  assert rules.parse("Rain.\nAnswer: wet", input_text="x").label == "wet"
  for text in ("Rain.\n**Answer**: wet", "Rain.\nanswer: wet", "Rain.\nThe answer is wet."):
    assert rules.parse(text, input_text="x").reason == 'no "Answer:" in the answer'


def test_only_the_choices_of_the_row_are_allowed():
  prompt = load_prompt("cqa")
  row = {"input_text": "Where?\nAnswer Choices:\n(a) a pond\n(b) sea\n(c) x\n(d) y\n(e) z"}
  assert prompt.read("It swims. So the answer is (b) sea.", row, "both").label == "sea"
  other = prompt.read("It swims. So the answer is (b) lake.", row, "both")
  assert (other.rationale, other.label) == ("It swims.", None)
  none = prompt.read("It swims. So the answer is (b) sea.", {"input_text": "Where?"}, "both")
  assert none.label is None


def test_an_error_of_a_task_file_becomes_the_reason(svamp_prompt):
  def fails(text):
    raise KeyError("mistake of its author")

  task = dataclasses.replace(load_task("svamp"), parse_answer=fails, same_label=fails)
  rules = ParseRules(task=task)
  assert "KeyError" in rules.parse("It rains.", input_text="x").reason
  assert not rules.same_label("a", "a")
  rules = ParseRules(task=dataclasses.replace(task, parse_answer=lambda text: (1, 2)))
  assert "did not return an Answer of texts" in rules.parse("It rains.", input_text="x").reason


PIECES = st.lists(
  st.one_of(
    st.text(max_size=20),
    st.sampled_from(
      ["Answer:", "\nAnswer: ", "The answer is ", "So the answer is ", "(a) ", "(b) sea", "(3 + 4)",
       "((((", "neutral", "entailment.", "\n", "\r", "\x00", "\u2028", "\ud800", "{label}",
       "<think>", "</think>", "**Answer**: ", "answer：", "\\boxed{", "}", "<answer>", "\u202e",
       "<|im_end|>", "\u200b", "\x1b[31m", "\nQ:", "\nText:", "\nPremise:", "(9/0)",
       "1e9", "**", "\\", "yes", "No."]
    ),
  ),
  max_size=12,
).map("".join)  # fmt: skip
INPUT = "Where?\nAnswer Choices:\n(a) a pond\n(b) sea\n(c) x\n(d) y\n(e) z"
PROMPTS = {
  **{name: load_prompt(name) for name in shipped_prompts()},
  "open": Prompt(instruction="Say."),
  "classes": Prompt(instruction="Say.", parse=CLASSES),
}
IS_LABEL = {
  "svamp": lambda label: value_of(label) is not None,
  "cqa": lambda label: label in ("a pond", "sea", "x", "y", "z"),
  "esnli": lambda label: label in ("entailment", "neutral", "contradiction"),
  "classes": lambda label: label in ("Yes", "No"),
  "open": lambda label: label.strip() and len(label) <= 200 and len(label.splitlines()) == 1,
}


@pytest.mark.parametrize("name", sorted(PROMPTS))
@pytest.mark.parametrize("mode", ["both", "rationale", "label"])
@settings(max_examples=60, deadline=None)
@given(text=PIECES, cut_off=st.booleans())
def test_no_text_raises_or_yields_an_invalid_label(name, mode, text, cut_off):
  gold = {"svamp": "(3 + 4)", "cqa": "sea", "esnli": "neutral", "classes": "Yes", "open": "wet"}
  row = {"input_text": INPUT, "output_text": gold[name], "rationale": "Because."}
  prompt = PROMPTS[name]
  parsed = prompt.read(text, row, mode, cut_off=cut_off)
  if parsed.label is None:
    assert parsed.reason
  else:
    assert parsed.rationale
    assert IS_LABEL[name](parsed.label)
    assert not cut_off or any(stop in text for stop in (*prompt.stop, "<|im_end|>"))
  if parsed.rationale is None:
    assert parsed.label is None
  else:
    assert parsed.rationale.strip()
  shown = f"{parsed.label}{parsed.rationale}{parsed.reason}".replace("\n", "").replace("\t", "")
  assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs")]
  if mode == "rationale" and parsed.rationale is not None:
    assert prompt.parse.same_label(parsed.label, gold[name])
  assert len(parsed.reason) <= 300


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_long_repetitive_answers_are_unparsable(name):
  """A regular expression that backtracks would take hours for these texts."""
  for piece in ("So the answer is ", "The answer is (", "(a) ", "Answer:", "\nAnswer: x", "("):
    text = (piece * MAX_ANSWER_CHARACTERS)[: MAX_ANSWER_CHARACTERS - 1]
    parsed = PROMPTS[name].read(text, {"input_text": INPUT, "output_text": "x"}, "both")
    assert (parsed.rationale, parsed.label) == (None, None)
    # Not rejected for its length: the parser read all of it.
    assert parsed.reason
    assert "characters" not in parsed.reason


def test_reasons_are_one_line():
  rules = ParseRules(task=load_task("esnli"))
  reason = rules.parse("Hug.\nAnswer: " + "a\x0bb" * 500, input_text="x").reason
  assert len(reason) <= 200
  assert not re.search(r"[\n\x0b]", reason)
