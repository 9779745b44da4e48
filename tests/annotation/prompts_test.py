"""Prompts: the messages for a row, invalid prompt files, and the default prompt."""

import pytest
import yaml

from dss_jax.annotation.default_prompt import default_prompt
from dss_jax.annotation.parsing import Parsed
from dss_jax.annotation.prompts import (
  Exemplar,
  Prompt,
  load_prompt,
  prompt_from,
  prompt_to_yaml,
  shipped_prompts,
)
from dss_jax.errors import UserError

PROMPT = Prompt(
  instruction="Add up.",
  exemplars=(
    Exemplar("1 and {label}?", "2", "1 and 1 is 2."),
    Exemplar("2 and 2?", "4", "It is 4."),
  ),
)
ROW = {"input_text": "3 and {rationale}?", "output_text": "6", "rationale": "3 and 3 is 6."}


def test_chat_messages():
  assert PROMPT.messages(ROW, "both") == [
    {"role": "system", "content": "Add up."},
    {"role": "user", "content": "Text: 1 and {label}?\nReasoning:"},
    {"role": "assistant", "content": "1 and 1 is 2.\nAnswer: 2"},
    {"role": "user", "content": "Text: 2 and 2?\nReasoning:"},
    {"role": "assistant", "content": "It is 4.\nAnswer: 4"},
    {"role": "user", "content": "Text: 3 and {rationale}?\nReasoning:"},
  ]


def test_plain_text():
  assert PROMPT.text(ROW, "both") == (
    "Add up.\n\nText: 1 and {label}?\nReasoning: 1 and 1 is 2.\nAnswer: 2\n\n"
    "Text: 2 and 2?\nReasoning: It is 4.\nAnswer: 4\n\nText: 3 and {rationale}?\nReasoning:"
  )


def test_only_rationalisation_shows_the_label():
  shown = PROMPT.messages(ROW, "rationale")
  assert "The answer is known to be: 6\n" in shown[-1]["content"]
  assert "The answer is known to be: 2\n" in shown[1]["content"]
  assert "3 and 3 is 6" not in shown[-1]["content"]
  blind = PROMPT.messages(ROW, "both")[-1]["content"]
  assert "6" not in blind


def test_mode_label_requests_the_label_only():
  messages = PROMPT.messages(ROW, "label")
  assert messages[2]["content"] == "Answer: 2"
  assert "3 and 3 is 6." in messages[-1]["content"]
  parsed = PROMPT.read("Answer: 6", ROW, "label")
  assert parsed == Parsed("3 and 3 is 6.", "6", "")


def test_rationalisation_must_lead_to_the_label_shown():
  assert PROMPT.read("3 plus 3.\nAnswer: 6", ROW, "rationale").rationale == "3 plus 3."
  refused = PROMPT.read("3 plus 3.\nAnswer: 7", ROW, "rationale")
  reason = "the rationale leads to another label than the one shown: '7'"
  assert refused == Parsed(None, None, reason)


def test_an_exemplar_is_left_out_for_its_own_row():
  row = {"input_text": "2 and 2?"}
  assert "It is 4" not in PROMPT.text(row, "both")
  assert len(PROMPT.messages(row, "both")) == 4


def test_exemplars_without_rationale_are_in_the_instruction():
  prompt = Prompt(instruction="Add up.", exemplars=(Exemplar("1 and 1?", "2"),))
  messages = prompt.messages(ROW, "both")
  assert len(messages) == 2
  assert messages[0]["content"].endswith("1 and 1?\n-> 2")


def test_a_repeated_answer_prefix_is_not_part_of_the_rationale(svamp_prompt):
  row = {"input_text": "x"}
  assert svamp_prompt.read("A: It is. The answer is (1 + 1).", row, "both").rationale == "It is."


@pytest.mark.parametrize("name", ["cqa", "esnli", "svamp"])
def test_answers_of_exemplars_in_shipped_prompts_parse(name):
  """An exemplar's answer in the prompt must parse as its label and rationale."""
  prompt = load_prompt(name)
  assert len(prompt.exemplars) >= 3
  for exemplar in prompt.exemplars:
    row = {"input_text": exemplar.input}
    answers = prompt.messages({"input_text": "?"}, "both")[2::2]
    texts = [message["content"] for message in answers]
    parsed = [prompt.read(text, row, "both") for text in texts]
    assert (exemplar.rationale, exemplar.label.partition(") ")[2] or exemplar.label) in [
      (one.rationale, one.label) for one in parsed
    ]


def test_digest_depends_on_all_but_the_parse_rules():
  values = {"instruction": "Add.", "stop": ["Q:"]}
  digest = prompt_from(values, "p").digest
  assert prompt_from({**values, "parse": {"labels": ["1"]}}, "p").digest == digest
  for change in ({"instruction": "Sum."}, {"stop": []}, {"max_answer_tokens": 9}):
    assert prompt_from({**values, **change}, "p").digest != digest


def test_yaml_round_trip(tmp_path):
  for name in shipped_prompts():
    prompt = load_prompt(name)
    path = tmp_path / "p.yaml"
    path.write_text(prompt_to_yaml(prompt), encoding="utf-8")
    again = load_prompt(path)
    assert again.digest == prompt.digest
    assert again.parse.labels == prompt.parse.labels
    assert again.parse.choices == prompt.parse.choices
    assert again.parse.task.name == prompt.parse.task.name


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "must be keys with values"),
    ("[1]", "must be keys with values"),
    ("a: b: c", r"p.yaml:1: not YAML"),
    ("a: &x [*x, *x]\n" * 1, "unknown key 'a'"),
    ("!!python/object/apply:os.system ['true']", "not YAML"),
    ("exemplars: []", '"instruction" is missing'),
    ("instruction: Add.\nexamplars: []", "did you mean 'exemplars'"),
    ("instruction: Add.\nexemplars: [{input: a}]", r'"exemplars\[1\]" needs "label"'),
    ("instruction: Add.\nexemplars: [{input: a, label: 1}]", r"\(in quotes\), not 1"),
    ("instruction: Add.\nquestion: '{text}'", '"question" needs {input} once each'),
    ("instruction: Add.\nanswer: '{label} {rationale}'", '"answer" needs'),
    ("instruction: Add.\nstop: Q", '"stop" must be a list'),
    ("instruction: Add.\nmax_answer_tokens: 0", "from 1, not 0"),
    ("instruction: Add.\nparse: {choices: '('}", "not a valid regular expression"),
    ("instruction: Add.\nparse: {choices: 'a'}", "needs one group"),
    ("instruction: Add.\nparse: {task: nothing}", "'nothing' does not exist"),
    ("instruction: Add.\nparse: {marker: ''}", "parse.marker"),
  ],
)
def test_invalid_prompt_files(text, message, tmp_path):
  path = tmp_path / "p.yaml"
  path.write_text(text)
  with pytest.raises(UserError, match=message) as error:
    load_prompt(path)
  assert "\n" not in str(error.value)


def test_unknown_prompt_name():
  with pytest.raises(UserError, match="give one of cqa, esnli, svamp"):
    load_prompt("nothing")


def _rows(labels, explained=()):
  return [
    {"input_text": f"text {n}", "output_text": label,
     **({"rationale": f"because {n}"} if n in explained else {})}
    for n, label in enumerate(labels)
  ]  # fmt: skip


def test_default_prompt_of_classes():
  prompt = default_prompt(_rows(["good"] * 6 + ["bad"] * 3, explained=(0, 1, 2, 7)))
  assert [(one.input, one.label) for one in prompt.exemplars] == [
    ("text 0", "good"), ("text 7", "bad"), ("text 1", "good"), ("text 2", "good"),
  ]  # fmt: skip
  assert prompt.parse.labels == ("bad", "good")
  assert "one of: bad; good." in prompt.instruction
  assert prompt.read("Fine.\nAnswer: awful", {"input_text": "x"}, "both").label is None


def test_default_prompt_of_open_labels():
  prompt = default_prompt(_rows([f"label {n}" for n in range(50)]))
  assert prompt.parse.labels is None
  assert [one.rationale for one in prompt.exemplars] == [None] * 5
  assert default_prompt([{"input_text": "x"}]).exemplars == ()
  assert yaml.safe_load(prompt_to_yaml(prompt))["parse"] == {
    "marker": "Answer:",
    "any_spelling": True,
    "max_label_characters": 200,
  }


@pytest.mark.parametrize(
  ("classes", "rows_per_class", "are_listed"),
  [(1, 9, False), (2, 4, True), (2, 3, False), (30, 4, True), (31, 4, False), (60, 9, False)],
)
def test_few_labels_of_several_rows_each_are_classes(classes, rows_per_class, are_listed):
  labels = [f"label {number:02d}" for number in range(classes)]
  prompt = default_prompt(_rows(labels * rows_per_class))
  assert prompt.parse.labels == (tuple(labels) if are_listed else None)


def test_exemplars_are_distinct_short_rows():
  rows = _rows(["a"] * 9)
  long = {"input_text": "x" * 1999, "output_text": "yes"}
  prompt = default_prompt([long, *rows[:2], *rows[:2], rows[2]])
  assert [one.input for one in prompt.exemplars] == ["text 0", "text 1", "text 2"]
  longest = {"input_text": "x" * 1999, "output_text": "y"}
  assert len(default_prompt([longest]).exemplars) == 1
  assert len(default_prompt(rows).exemplars) == 5


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("stop: ['']", '"stop" must be a list of texts'),
    ("max_answer_tokens: true", '"max_answer_tokens" must be a whole number'),
    ("parse: {labels: [a, '']}", '"parse.labels" must be a list of texts'),
    ("parse: {max_label_characters: 0}", '"parse.max_label_characters" must be a whole number'),
    ("parse: {max_label_characters: '9'}", '"parse.max_label_characters" must be a whole number'),
    ("parse: {marker: 3}", '"parse.marker" must be text'),
    ("parse: [a]", '"parse": must be keys with values'),
  ],
)
def test_values_of_a_wrong_kind(text, message, tmp_path):
  path = tmp_path / "p.yaml"
  path.write_text(f"instruction: Add.\n{text}")
  with pytest.raises(UserError, match=rf"p\.yaml: {message}"):
    load_prompt(path)
  path.write_text("instruction: Add.\nmax_answer_tokens: 1\nparse: {max_label_characters: 1}")
  assert load_prompt(path).parse.max_label_characters == 1
