"""Drift: inputs of another form are told from held-out rows of the same data."""

import dataclasses
import json
import random

import pytest

from dss_jax.data.sources import source_from_rows, source_from_task
from dss_jax.data.task_files import load_task
from dss_jax.data.token_store import open_token_store
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.errors import UserError
from dss_jax.student.drift import (
  EMPTY,
  LONGER,
  ORDER,
  SHORTER,
  TEMPLATE,
  UNKNOWN,
  WORDS,
  DriftCounter,
  DriftDetector,
)
from dss_jax.student.input_profile import (
  INPUTS,
  Template,
  profile_inputs,
  read_profile,
  write_profile,
)

WORDS_OF_ROWS = ("red", "green", "blue", "cold", "warm", "round", "flat", "small", "old", "new")
FRENCH = "Marie a cueilli douze pommes dans le jardin de sa grand-mère et en a mangé trois."
RUSSIAN = "Сколько яблок осталось у Маши, если она съела три из десяти?"


def row(dice, number):
  words = [" ".join(dice.choices(WORDS_OF_ROWS, k=dice.randint(3, 9))) for _ in range(2)]
  text = f"Which of two things is better?\nFirst: {words[0]}\nSecond: {words[1]}\nAnswer:"
  return {"input_text": text, "output_text": ("first", "second")[number % 2]}


def rows(seed=0, count=60):
  dice = random.Random(seed)
  return [row(dice, number) for number in range(count)]


@pytest.fixture
def profile_of(tmp_path):
  def profile_of(given, vocabulary="bytes"):
    vocabulary = load_vocabulary(vocabulary)
    source = source_from_rows("rows", given)
    store = open_token_store(
      source, vocabulary, max_input_tokens=7168, max_output_tokens=64, cache_dir=tmp_path
    )
    return profile_inputs(source.rows, store, vocabulary)

  return profile_of


@pytest.fixture
def detector(profile_of):
  return DriftDetector(profile_of(rows()), load_vocabulary("bytes"), "predict: ")


def test_the_profile(profile_of):
  given = rows()
  profile = profile_of(given)
  assert profile.rows == 60
  assert profile.template == Template(
    "Which of two things is better?",
    ("First:", "Second:"),
    "Answer:",
    is_ordered=True,
    filled=(1, 2),
  )
  lengths = [len(f"predict: {each['input_text']}") + 1 for each in given]
  assert (profile.tokens["min"], profile.tokens["max"]) == (min(lengths), max(lengths))
  assert profile.tokens["p50"] in lengths
  assert profile.unknown_share == 0
  assert profile.rare_share == 0
  assert set(WORDS_OF_ROWS) < set(profile.words)
  assert profile.labels == ("first", "second")


def test_rows_with_a_rationale_alone_are_profiled(profile_of):
  given = [{"input_text": each["input_text"], "rationale": "It is."} for each in rows()]
  profile = profile_of(given)
  lengths = [len(f"explain: {each['input_text']}") + 1 for each in given]
  assert profile.tokens["max"] == max(lengths)
  assert profile.labels is None


def test_what_few_rows_share_is_no_template(profile_of):
  assert profile_of(rows(count=19)).template == Template()
  assert profile_of(rows(count=20)).template != Template()


def test_a_part_that_rows_lack_is_none(profile_of):
  given = rows(count=400)
  for number in range(5):
    given[number]["input_text"] = given[number]["input_text"].replace("First:", "first")
  template = profile_of(given).template
  assert template.parts == ("Second:",)
  # What a few rows have otherwise is no reason.
  given = rows(count=400)
  given[7]["input_text"] = "What now?"
  assert profile_of(given).template.parts == ("First:", "Second:")


def test_fields_in_any_order_are_not_ordered(profile_of):
  given = rows()
  for each in given[::2]:
    lines = each["input_text"].split("\n")
    each["input_text"] = "\n".join([lines[0], lines[2], lines[1], lines[3]])
  template = profile_of(given).template
  assert set(template.parts) == {"First:", "Second:"}
  assert not template.is_ordered


def test_held_out_rows_are_no_drift(detector):
  assert all(detector.drift_of(each["input_text"]) == [] for each in rows(1, 500))
  # Neither are other spaces.
  assert detector.drift_of(rows(2)[0]["input_text"].replace("\n", "  ")) == []


def test_what_differs(detector):
  text = rows(1)[0]["input_text"]
  first, one, other, last = text.split("\n")
  for kind, changed in [
    (TEMPLATE, "\n".join([one, other, last])),
    (TEMPLATE, "\n".join([first, one, other])),
    (TEMPLATE, text.replace("Second:", "Third:")),
    (ORDER, "\n".join([first, other, one, last])),
    (EMPTY, "\n".join([first, "First:", other, last])),
    (EMPTY, "\n".join([first, one, "Second: ", last])),
    (LONGER, "\n".join([first, one + " warm" * 100, other, last])),
    (WORDS, "\n".join([first, f"First: {FRENCH}", f"Second: {FRENCH}", last])),
    (WORDS, "\n".join([first, f"First: {RUSSIAN}", f"Second: {RUSSIAN}", last])),
  ]:
    assert kind in detector.drift_of(changed), kind
  assert detector.drift_of("Why?") == [TEMPLATE, SHORTER]


def test_unknown_pieces(profile_of, pieces):
  dice = random.Random(0)
  given = [
    {"input_text": " ".join(dice.choices(["one", "two", "three"], k=6)), "output_text": "x"}
    for _ in range(40)
  ]
  detector = DriftDetector(profile_of(given, pieces), load_vocabulary(pieces), "predict: ")
  assert detector.drift_of(given[0]["input_text"]) == []
  assert UNKNOWN in detector.drift_of("один два три четыре пять шесть")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
  import sentencepiece

  folder = tmp_path_factory.mktemp("pieces")
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["predict: explain: one two three four x"] * 30),
    model_prefix=str(folder / "pieces"),
    vocab_size=40,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return str(folder / "pieces.model")


def test_the_warning(detector):
  counter = DriftCounter(detector)
  good = [each["input_text"] for each in rows(1, 8)]
  counter.add(good)
  assert counter.lines() == []
  bare = good[0].split("\n")[1]
  counter.add([bare, good[1], bare])
  counter.add([good[2] + " warm" * 200 + " Answer:", *[bare] * 3])
  assert (counter.rows, counter.drifted) == (15, 6)
  head, template, longer, *more = counter.lines()
  assert head.startswith("warning: 6 of 15 inputs look different")
  assert template.startswith("  5 lack a part of the training inputs' template, such as 'Which of")
  assert f"(rows 9, 11, 13, ...: '{bare[:40]}" in template
  tokens = detector.profile.tokens
  assert longer.startswith(
    "  1 are longer than the training inputs, which have "
    f"{tokens['min']} to {tokens['max']} tokens (row 12: 'Which of two things"
  )
  assert [line.split()[1] for line in more] in ([], ["are"])
  silent = DriftCounter(None)
  silent.add(["anything"])
  assert silent.lines() == []


def test_the_profile_is_kept_in_a_file(profile_of, tmp_path):
  profile = profile_of(rows())
  write_profile(tmp_path, profile)
  assert read_profile(tmp_path) == profile
  assert json.loads((tmp_path / INPUTS).read_text())["rows"] == 60
  write_profile(tmp_path, dataclasses.replace(profile, labels=None))
  assert read_profile(tmp_path).labels is None
  (tmp_path / INPUTS).write_text("{}")
  with pytest.raises(UserError, match=r"inputs.json: cannot be read .*delete it"):
    read_profile(tmp_path)
  (tmp_path / INPUTS).unlink()
  assert read_profile(tmp_path) is None


@pytest.mark.parametrize("name", ["svamp", "cqa", "esnli"])
def test_real_data(shared, tmp_path, name):
  """Less than 2 % of held-out rows look different, and everything that is different does."""
  task, folder = load_task(name), shared / "data" / name
  vocabulary = load_vocabulary(shared / "data" / "vocab" / "t5_spiece.model")
  train = source_from_task(task, "train", folder, needs_answers=False)
  store = open_token_store(
    train, vocabulary, max_input_tokens=7168, max_output_tokens=1024, cache_dir=tmp_path
  )
  detector = DriftDetector(profile_inputs(train.rows, store, vocabulary), vocabulary, "predict: ")
  test = source_from_task(task, "test", folder, needs_answers=False)
  texts = [each["input_text"] for each in test.rows]
  assert sum(bool(detector.drift_of(text)) for text in texts) < 0.02 * len(texts)
  for text in texts[:50]:
    first, *others = text.split("\n")
    assert LONGER in detector.drift_of(" ".join([text] * 10))
    assert WORDS in detector.drift_of(FRENCH)
    assert {UNKNOWN, WORDS} <= set(detector.drift_of(RUSSIAN))
    if name == "svamp":
      continue  # Plain questions: there is no template.
    assert TEMPLATE in detector.drift_of(first)
    # The first line is the instruction, or the question.
    without = TEMPLATE if name == "esnli" else EMPTY
    assert without in detector.drift_of("\n".join(others))
    assert ORDER in detector.drift_of("\n".join([first, *reversed(others)]))
