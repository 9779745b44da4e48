"""A student's answers: candidates, stop texts, streams, and the rows that `dss predict` writes."""

import dataclasses
import json
import pathlib
import types

import numpy as np
import pytest

from dss_jax.config.schema import DataConfig, DecodingConfig, LossConfig, MeshConfig
from dss_jax.data.records import write_rows
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.parallel.mesh import make_mesh
from dss_jax.student.predictor import Predictor, predict_file
from dss_jax.student.questions import Question
from tests.fixtures.networks import TINY

MODEL = dataclasses.replace(TINY, num_decoder_layers=1)
QUESTIONS = [
  Question(text, kind) for text in ("a", "Is it so? " * 3, "why") for kind in ("label", "rationale")
]


class Letters:
  """A vocabulary in which each id is a letter."""

  pad_id, eos_id = 0, 1

  def encode(self, text):
    return [2 + ord(letter) % 20 for letter in text]

  def decode(self, ids):
    kept = ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids
    return "".join("abcdefghij"[i % 10] for i in kept)


class PairsOfLetters(Letters):
  """A vocabulary in which two ids are a letter, and one is a character not known yet."""

  def decode(self, ids):
    text = super().decode(ids)
    return text[1::2] + "\N{REPLACEMENT CHARACTER}" * (len(text) % 2)


@pytest.fixture(scope="module")
def student(random_params):
  """A student in memory, with random weights."""
  params = random_params(MODEL, seed=4, gain=2.0)
  return types.SimpleNamespace(
    directory=pathlib.Path("student"),
    config=types.SimpleNamespace(
      model=MODEL,
      loss=LossConfig(),
      data=DataConfig(feature_lengths={"inputs": 40, "targets": 32}),
    ),
    card={
      "longest_target_tokens": {"label": 6, "rationale": 30},
      "prefixes": {"label": "predict: ", "rationale": "explain: "},
    },
    vocabulary=Letters(),
    params=lambda mesh, scan_layers: params,
  )


def predictor(student, **decoding):
  mesh = make_mesh(MeshConfig(data=1), 4)
  return Predictor(student, mesh, batch_size=4, decoding=DecodingConfig(**decoding))


@pytest.fixture(scope="module")
def greedy(student):
  return [answer.text for (answer,) in predictor(student).candidates(QUESTIONS)]


def test_answers_are_as_long_as_their_kind_allows(student, greedy):
  lengths = [len(text) for text in greedy]
  assert max(lengths[::2]) == 8
  assert max(lengths[1::2]) == 32
  short = predictor(student).candidates(QUESTIONS, max_output_tokens=3)
  assert [answer.text for (answer,) in short] == [text[:3] for text in greedy]


def test_answers_count_as_they_come(student, greedy):
  counts = []
  texts = [question.text for question in QUESTIONS[::2]]
  assert predictor(student).answers(texts, "label", on_answers=counts.append) == greedy[::2]
  assert sum(counts) == 3


def test_cut_inputs_are_counted(student):
  asked = predictor(student)
  asked.candidates([Question("long " * 20, "label"), Question("a", "rationale")])
  assert asked.cut_inputs == {"label": 1, "rationale": 0}


def test_candidates_have_log_probabilities(student):
  asked = predictor(student, temperature=1.0, num_candidates=3, log_probabilities=True)
  for answers in asked.candidates(QUESTIONS):
    assert len(answers) == 3
    for answer in answers:
      assert len(answer.ids) == len(answer.log_probabilities)
      assert all(number <= 0 for number in answer.log_probabilities)


def test_an_answer_ends_before_the_first_stop_text(student, greedy):
  longest = max(greedy, key=len)
  stops = longest[7:9], longest[4:6]
  asked = predictor(student, stop=stops, log_probabilities=True, top_log_probabilities=2)
  for text, (answer,) in zip(greedy, asked.candidates(QUESTIONS), strict=True):
    places = [text.find(stop) for stop in stops if stop in text]
    assert answer.text == text[: min(places, default=len(text))]
    if places:
      # The tokens go on to the one that completes the stop text.
      assert len(answer.ids) == min(text.find(stop) + 2 for stop in stops if stop in text)
    assert len(answer.log_probabilities) == len(answer.alternatives) == len(answer.ids)
  assert any(stop in longest for stop in stops)


def test_a_stream_adds_up_to_the_answers(student, greedy, monkeypatch):
  monkeypatch.setattr("dss_jax.decoding.engine.STEPS", 5)
  texts, increments = [""] * len(QUESTIONS), 0
  for increment in predictor(student).stream(QUESTIONS):
    texts[increment.number] += increment.text
    increments += 1
  assert texts == greedy
  assert increments > 2 * len(QUESTIONS)
  stop = max(greedy, key=len)[9:11]
  texts = [""] * len(QUESTIONS)
  for increment in predictor(student, stop=(stop,)).stream(QUESTIONS):
    texts[increment.number] += increment.text
  assert texts == [text.split(stop)[0] for text in greedy]


def test_a_streams_tokens_have_their_alternatives(student, monkeypatch):
  monkeypatch.setattr("dss_jax.decoding.engine.STEPS", 5)
  asked = predictor(student, log_probabilities=True, top_log_probabilities=3)
  whole = asked.candidates(QUESTIONS)
  streamed = [[] for _ in QUESTIONS]
  for increment in asked.stream(QUESTIONS):
    assert len(increment.alternatives) == len(increment.ids)
    streamed[increment.number] += increment.alternatives
  for (answer,), alternatives in zip(whole, streamed, strict=True):
    np.testing.assert_allclose(alternatives, answer.alternatives, atol=1e-4)
    likeliest = [step[0] for step in answer.alternatives]
    assert likeliest == list(zip(answer.ids, answer.log_probabilities, strict=True))


def test_a_stream_shows_whole_characters_only(student, monkeypatch):
  """The bytes of a character may come in different pieces."""
  monkeypatch.setattr("dss_jax.decoding.engine.STEPS", 5)
  monkeypatch.setattr(student, "vocabulary", PairsOfLetters())
  asked = predictor(student)
  texts = [""] * len(QUESTIONS)
  for increment in asked.stream(QUESTIONS):
    texts[increment.number] += increment.text
    assert increment.is_last or "\N{REPLACEMENT CHARACTER}" not in increment.text
  assert texts == [answer.text for (answer,) in asked.candidates(QUESTIONS)]


def written(student, tmp_path, **decoding):
  write_rows(tmp_path / "asked.jsonl", [{"input_text": "a"}, {"input_text": "b", "note": 1}])
  predict_file(
    predictor(student, **decoding), tmp_path / "asked.jsonl", tmp_path / "out.jsonl", explain=True
  )
  return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def test_rows_have_their_answers(student, tmp_path):
  rows = written(student, tmp_path)
  assert [set(row) for row in rows] == [
    {"input_text", "prediction", "rationale"},
    {"input_text", "prediction", "rationale", "note"},
  ]
  texts = predictor(student).answers(["a", "b"], "rationale")
  assert [row["rationale"] for row in rows] == texts


def test_rows_list_their_candidates(student, tmp_path):
  (row, _) = written(student, tmp_path, beams=3, num_candidates=2)
  for key in ("prediction", "rationale"):
    candidates = row[f"{key}_candidates"]
    assert [set(each) for each in candidates] == [{"text", "score"}] * 2
    assert candidates[0]["score"] >= candidates[1]["score"]
    assert row[key] == candidates[0]["text"]
  (row, _) = written(student, tmp_path, log_probabilities=True)
  (candidate,) = row["prediction_candidates"]
  assert len(candidate["ids"]) == len(candidate["log_probabilities"])


@pytest.mark.parametrize("eos_id", [3, 20])
def test_inputs_and_answers_end_with_the_vocabularys_end_mark(random_params, train_pieces, eos_id):
  vocabulary = load_vocabulary(train_pieces(unk_id=1, eos_id=eos_id))
  config = dataclasses.replace(MODEL, vocab_size=vocabulary.size)
  drawn = random_params(config, seed=5, gain=1.0)

  def predictor(sign):
    """A student that writes its end mark or token 7 first, depending on the sign."""
    kernel = np.zeros_like(drawn["decoder"]["logits_dense"]["kernel"])
    kernel[:, eos_id], kernel[:, 7] = sign, -sign
    params = {**drawn, "decoder": {**drawn["decoder"], "logits_dense": {"kernel": kernel}}}
    student = types.SimpleNamespace(
      config=types.SimpleNamespace(
        model=config,
        loss=LossConfig(),
        data=DataConfig(feature_lengths={"inputs": 16, "targets": 8}),
      ),
      card={"prefixes": {"label": "the "}, "longest_target_tokens": {"label": 8}},
      vocabulary=vocabulary,
      params=lambda mesh, scan_layers: params,
    )
    return Predictor(student, make_mesh(MeshConfig(data=1), 1), batch_size=1)

  ids = predictor(1)._encode("red box", "label")
  assert ids == [*vocabulary.encode("the red box"), eos_id]
  question = Question("red box", "label")
  answers = [predictor(sign).candidates([question])[0][0].ids for sign in (1, -1)]
  assert [eos_id] in answers
