"""Annotated rows from answers: votes, concerns, filters, labels."""

import pytest

from dss_jax.annotation.filters import CONCERNS, Limits, RationaleFilter
from dss_jax.annotation.journal import Entry
from dss_jax.annotation.outcome import AnnotationConfig, Failure, Outcomes
from dss_jax.annotation.prompts import Exemplar, Prompt
from dss_jax.annotation.self_consistency import vote
from dss_jax.errors import UserError
from dss_jax.teachers.base import TeacherResponse

PROMPT = Prompt(
  instruction="Say whether the text is happy or sad, and why you think so, in a sentence.",
  exemplars=(Exemplar("We won!", "happy", "Whoever wins a game is happy about it."),),
)


def _answer(rationale, label, finish="stop"):
  return Entry(
    TeacherResponse(f"{rationale}\nAnswer: {label}", finish, 10, 5), "2030-01-01T00:00:00Z"
  )


def _row(row, answers, **config):
  config = AnnotationConfig(**config)
  return Outcomes("openai:m", PROMPT, config).row(row, config.mode(row), answers)


def test_votes():
  same = str.__eq__
  assert vote(["a", "b", "a", None], same) == ("a", 0.5, (0, 2))
  assert vote(["b", "a", "a", "b"], same) == ("b", 0.5, (0, 3))
  assert vote([None, None], same) == (None, 0.0, ())
  assert vote([], same) == (None, 0.0, ())
  lenient = vote(["Yes", "no", "YES"], lambda a, b: a.lower() == b.lower())
  assert lenient == ("Yes", pytest.approx(2 / 3), (0, 2))


@pytest.mark.parametrize(
  ("labels", "show", "row", "mode"),
  [
    ("missing", True, {}, "both"),
    ("missing", True, {"output_text": "a"}, "rationale"),
    ("missing", False, {"output_text": "a"}, "both"),
    ("missing", True, {"rationale": "r"}, "label"),
    ("missing", True, {"output_text": "a", "rationale": "r"}, None),
    ("keep", True, {}, "both"),
    ("keep", True, {"rationale": "r"}, None),
    ("keep", True, {"output_text": "a"}, "rationale"),
    ("keep", False, {"output_text": "a"}, "both"),
    ("teacher", True, {"output_text": "a"}, "both"),
    ("teacher", True, {"output_text": "a", "rationale": "r"}, "label"),
    ("teacher", True, {}, "both"),
  ],
)
def test_mode(labels, show, row, mode):
  assert (
    AnnotationConfig(teacher_labels=labels, show_labels=show).mode({"input_text": "x", **row})
    == mode
  )


def test_several_samples_need_a_temperature():
  assert AnnotationConfig(samples=2, temperature=0.1).samples == 2
  with pytest.raises(UserError, match="--samples 2: at temperature 0 all samples of a row are the"):
    AnnotationConfig(samples=2)


def test_an_unlabelled_row_gets_label_and_rationale():
  row = _row({"input_text": "x", "id": 7}, [_answer("It sings, so happy it is.", "happy")])
  assert list(row) == ["input_text", "output_text", "rationale", "id", "provenance"]
  assert (row["output_text"], row["rationale"]) == ("happy", "It sings, so happy it is.")
  assert row["provenance"] == {
    "status": "answered",
    "teacher": "openai:m",
    "prompt": PROMPT.digest,
    "mode": "both",
    "temperature": 0.0,
    "label": "happy",
    "agreement": 1.0,
    "agrees_with_gold": None,
    "concerns": [],
    "dropped_for": [],
    "samples": [
      {
        "raw": "It sings, so happy it is.\nAnswer: happy",
        "time": "2030-01-01T00:00:00Z",
        "finish": "stop",
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "label": "happy",
        "rationale": "It sings, so happy it is.",
      }
    ],
  }


@pytest.mark.parametrize(
  ("labels", "gold", "label"),
  [
    ("keep", "sad", "sad"),
    ("keep", None, None),
    ("missing", "sad", "sad"),
    ("missing", None, "happy"),
    ("teacher", "sad", "happy"),
    ("teacher", None, "happy"),
  ],
)
def test_teacher_labels(labels, gold, label):
  row = {"input_text": "x", **({"output_text": gold} if gold else {})}
  answer = _answer("It sings, so happy it is.", "happy")
  row = _row(row, [answer], teacher_labels=labels, show_labels=False)
  assert row.get("output_text") == label
  assert row["rationale"]
  assert row["provenance"]["agrees_with_gold"] is (False if gold else None)
  assert ("gold" in row["provenance"]["concerns"]) == bool(gold)
  assert row["provenance"].get("gold_label") == (gold if labels == "teacher" else None)


def test_the_winning_label_and_its_rationales_are_kept():
  answers = [
    _answer("Tears fall, so it is sad.", "sad"),
    _answer("It sings, so happy it is.", "happy"),
    _answer("It dances, which is happy.", "happy"),
    _answer("It sings, so happy it is.", "happy"),
  ]
  row = _row({"input_text": "x"}, answers, samples=4, temperature=0.7, rationales_per_row=9)
  assert row["output_text"] == "happy"
  assert row["provenance"]["agreement"] == 0.75
  assert row["rationales"] == ["It sings, so happy it is.", "It dances, which is happy."]
  assert row["rationale"] == row["rationales"][0]
  one = _row({"input_text": "x"}, answers, samples=4, temperature=0.7)
  assert "rationales" not in one


def test_a_kept_gold_label_gets_a_matching_rationale():
  answers = [
    _answer("It sings, so happy it is.", "happy"),
    _answer("It dances, which is happy.", "happy"),
    _answer("Tears fall, so it is sad.", "sad"),
  ]
  row = {"input_text": "x", "output_text": "sad"}
  row = _row(row, answers, samples=3, temperature=1.0, show_labels=False)
  assert (row["output_text"], row["rationale"]) == ("sad", "Tears fall, so it is sad.")
  assert row["provenance"]["label"] == "happy"
  assert row["provenance"]["agrees_with_gold"] is False


def test_failed_samples_do_not_lower_the_agreement():
  answers = [Failure("failed", "HTTP 500"), _answer("It sings, so happy it is.", "happy")]
  row = _row({"input_text": "x"}, answers, samples=2, temperature=1.0)
  assert row["provenance"]["status"] == "answered"
  assert row["provenance"]["samples_without_answer"] == 1
  assert row["provenance"]["last_failure"] == "HTTP 500"
  assert row["provenance"]["agreement"] == 1.0


@pytest.mark.parametrize("status", ["failed", "unasked"])
def test_a_row_without_an_answer_keeps_its_label(status):
  row = _row({"input_text": "x", "output_text": "sad"}, [Failure(status, "because")])
  assert (row["output_text"], row.get("rationale")) == ("sad", None)
  assert (row["provenance"]["status"], row["provenance"]["reason"]) == (status, "because")


def test_an_unparsable_answer_gives_no_rationale():
  entry = Entry(TeacherResponse("No idea."), "")
  row = _row({"input_text": "x"}, [entry])
  assert set(row) == {"input_text", "provenance"}
  assert row["provenance"]["reason"] == 'no "Answer:" in the answer'
  assert row["provenance"]["samples"][0]["raw"] == "No idea."


def test_results_of_an_earlier_run_are_replaced():
  earlier = {"input_text": "x", "rationales": ["old"], "provenance": {"status": "failed"}}
  row = _row(earlier, [_answer("It sings, so happy it is.", "happy")])
  assert "rationales" not in row
  assert row["provenance"]["status"] == "answered"


@pytest.mark.parametrize(
  ("rationale", "label", "cut_off", "concerns"),
  [
    ("It sings, so happy it is.", "happy", False, []),
    ("It is happy.", "happy", False, []),
    ("Happy!", "happy", False, ["length"]),
    ("happy " * 301 + ".", "happy", False, ["length"]),
    ("It sings all day long.", "happy", False, ["unmentioned"]),
    ("It sings, so happy it", "happy", False, ["cut-off"]),
    ("It sings, so happy it is.", "happy", True, ["cut-off"]),
    ("Whoever wins a game is happy about it!", "happy", False, ["echo"]),
    ("Say whether the text is happy or sad.", "happy", False, ["echo"]),
    ("the BIRD sings all day, happy.", "happy", False, ["echo"]),
    ("The bird sings all day, happy. So happy it is.", "happy", False, ["echo"]),
    ("It sings.", None, False, ["length"]),
  ],
)
def test_concerns(rationale, label, cut_off, concerns):
  found = RationaleFilter(PROMPT, Limits()).concerns(
    rationale, label, "The bird sings all day, happy.", cut_off
  )
  assert found == concerns
  assert set(found) <= set(CONCERNS)


def test_a_filter_drops_the_rationale_and_records_it():
  answers = [_answer("It sings all day long.", "happy")]
  row = _row({"input_text": "x"}, answers)
  assert row["provenance"]["concerns"] == ["unmentioned"]
  assert row["rationale"]
  row = _row({"input_text": "x"}, answers, filters=frozenset({"unmentioned"}))
  assert "rationale" not in row
  assert row["output_text"] == "happy"
  assert row["provenance"]["dropped_for"] == ["unmentioned"]
  assert row["provenance"]["samples"][0]["rationale"] == "It sings all day long."


def test_a_filter_keeps_the_other_samples():
  answers = [_answer("It sings all day long.", "happy"), _answer("Such happy songs.", "happy")]
  row = _row(
    {"input_text": "x"},
    answers,
    samples=2,
    temperature=1.0,
    rationales_per_row=2,
    filters=frozenset({"unmentioned"}),
  )
  assert row["rationale"] == "Such happy songs."
  assert "rationales" not in row
  assert row["provenance"]["dropped_for"] == []


def test_agreement_and_gold_filters():
  answers = [
    _answer("It sings, so happy it is.", "happy"),
    _answer("Tears fall, so it is sad.", "sad"),
    _answer("Nothing is known, so it is open.", "open"),
  ]
  split = {"samples": 3, "temperature": 1.0}
  row = _row({"input_text": "x"}, answers, filters=frozenset({"agreement"}), **split)
  assert "agreement" in row["provenance"]["dropped_for"]
  assert set(row) == {"input_text", "provenance"}
  row = _row(
    {"input_text": "x", "output_text": "sad"},
    answers[:1],
    filters=frozenset({"gold"}),
    show_labels=False,
  )
  assert (row["output_text"], row.get("rationale")) == ("sad", None)
  assert row["provenance"]["dropped_for"] == ["gold"]
  row = _row(
    {"input_text": "x", "output_text": "sad"},
    answers[:1],
    filters=frozenset({"gold"}),
    teacher_labels="teacher",
  )
  assert set(row) == {"input_text", "provenance"}


def test_a_row_in_which_nothing_is_missing_keeps_the_provenance_of_an_earlier_run():
  row = {
    "input_text": "x",
    "output_text": "sad",
    "rationale": "r",
    "provenance": {"status": "answered"},
  }
  outcomes = Outcomes("openai:m", PROMPT, AnnotationConfig())
  assert outcomes.untouched(row) == row
  del row["provenance"]
  assert outcomes.untouched(row) == {**row, "provenance": {"status": "untouched"}}


def test_without_a_rationale_for_the_gold_label_that_of_the_winning_label_is_kept():
  answers = [
    _answer("Tears fall, so it is sad.", "sad"),
    _answer("It sings, so happy it is.", "happy"),
    _answer("It dances, which is happy.", "happy"),
  ]
  row = {"input_text": "x", "output_text": "open"}
  row = _row(row, answers, samples=3, temperature=1.0, show_labels=False)
  assert (row["output_text"], row["rationale"]) == ("open", "It sings, so happy it is.")


def test_half_of_the_samples_are_enough_agreement():
  answers = [
    _answer("It sings, so happy it is.", "happy"),
    _answer("Tears fall, so it is sad.", "sad"),
    _answer("Nothing is known, so it is open.", "open"),
  ]
  half, third = (
    _row({"input_text": "x"}, answers[:count], samples=count, temperature=1.0)["provenance"]
    for count in (2, 3)
  )
  assert (half["agreement"], half["concerns"]) == (0.5, [])
  assert (third["agreement"], third["concerns"]) == (0.3333, ["agreement"])


@pytest.mark.parametrize(
  ("rest", "label", "concerns"), [("", None, ["cut-off"]), ("\nText: more", "happy", [])]
)
def test_cut_off_is_a_concern_unless_the_label_is_complete(rest, label, concerns):
  answer = _answer("It sings, so happy it is.", f"happy{rest}", finish="length")
  provenance = _row({"input_text": "x"}, [answer])["provenance"]
  assert (provenance["label"], provenance["samples"][0].get("concerns", [])) == (label, concerns)


def test_values_of_the_users_under_our_keys_are_kept():
  own = {"provenance": {"source": "wiki"}, "rationales": ["of annotator one"]}
  row = _row({"input_text": "x", **own}, [_answer("It sings, so happy it is.", "happy")])
  kept = {"own_provenance": {"source": "wiki"}, "own_rationales": ["of annotator one"]}
  assert row["provenance"].items() >= kept.items()
  assert "rationales" not in row
  # Also when the row is annotated once more.
  del row["rationale"]
  again = _row(row, [_answer("It sings, so happy it is.", "happy")])
  assert again["provenance"].items() >= kept.items()
  whole = {"input_text": "x", "output_text": "y", "rationale": "z", **own}
  untouched = Outcomes("t", PROMPT, AnnotationConfig()).untouched(whole)
  assert untouched == {
    **whole, "provenance": {"status": "untouched", "own_provenance": {"source": "wiki"}}
  }  # fmt: skip


def test_a_remark_of_the_server_is_the_reason():
  answer = Entry(TeacherResponse("", "stop", 10, 5, remark="the model refused: no"), "")
  provenance = _row({"input_text": "x"}, [answer])["provenance"]
  assert (provenance["status"], provenance["reason"]) == ("unparsable", "the model refused: no")


def test_several_labels_are_a_concern():
  answer = _answer("It sings.\nAnswer: sad\nBut wait, it is happy.", "happy")
  row = _row({"input_text": "x"}, [answer])
  assert row["output_text"] == "happy"
  assert "several-answers" in row["provenance"]["concerns"]
