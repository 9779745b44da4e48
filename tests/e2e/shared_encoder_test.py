"""`dss distill --shared-encoder`, and all that is done with such a student."""

import json

import numpy as np
import pytest

from dss_jax.config.schema import MeshConfig
from dss_jax.decoding.greedy import greedy
from dss_jax.model.layer_stacks import unrolled_config
from dss_jax.parallel.mesh import make_mesh
from dss_jax.student.student import Student


def written(student, text, start):
  """What the student's network writes to `predict: x` from the start token."""
  vocabulary = student.vocabulary
  ids = [*vocabulary.encode(f"predict: {text}"), vocabulary.eos_id]
  mesh = make_mesh(MeshConfig(data=1), 4)
  answer = greedy(
    student.params(mesh, scan_layers=False),
    unrolled_config(student.config.model),
    np.array([ids], np.int32),
    max_decode_tokens=32,
    eos_id=vocabulary.eos_id,
    pad_id=vocabulary.pad_id,
    start_tokens_B=np.array([start], np.int32),
  )
  return vocabulary.decode(np.asarray(answer)[0].tolist())


def test_the_card_and_the_batches(shared_student):
  card = shared_student.card()
  assert card["prefixes"] == {"label": "predict: ", "rationale": "predict: "}
  assert card["start_tokens"] == {"label": 0, "rationale": 1}
  assert Student.open(shared_student.folder / "student").config.data.shared_encoder


def test_predict_asks_for_either_by_its_start_token(shared_student):
  outcome = shared_student(
    *("predict", "--mesh", "data=1", "--model", "student", "--dataset", "eval.jsonl"),
    *("--output", "answers.jsonl", "--explain", "--max-output-tokens", "32"),
  )
  assert outcome.code == 0, outcome.err
  student = Student.open(shared_student.folder / "student")
  rows = shared_student.read("answers.jsonl")
  for row in rows[:3]:
    assert row["prediction"] == written(student, row["input_text"], 0)
    assert row["rationale"] == written(student, row["input_text"], 1)
  assert any(row["prediction"] != row["rationale"] for row in rows)


def test_evaluate_gives_what_training_gave(shared_student):
  outcome = shared_student(
    *("evaluate", "--mesh", "data=1", "--model", "student", "--dataset", "eval.jsonl", "--explain"),
  )
  assert outcome.code == 0, outcome.err
  step = shared_student.card()["best_step"]
  lines = [line for line in shared_student.numbers() if line["step"] == step]
  (line,) = [line for line in lines if "eval_total_loss" in line]
  for name in ("label/eval_loss", "rationale/eval_loss", "eval_num_predictions"):
    assert outcome.json[name] == pytest.approx(line[name], rel=1e-5)


def test_an_export_says_how_to_ask(shared_student):
  outcome = shared_student("export", "--model", "student", "--output", "hf", "--format", "hf")
  assert outcome.code == 0, outcome.err
  folder = shared_student.folder / "hf"
  assert json.loads((folder / "config.json").read_text())["decoder_start_token_id"] == 0
  assert (
    "`model.generate(**inputs, decoder_start_token_id=1)`" in (folder / "README.md").read_text()
  )


def test_it_is_another_run_and_needs_both_targets(shared_student):
  outcome = shared_student("distill", *shared_student.flags("student"))
  assert outcome.code == 2
  assert "DataConfig.shared_encoder was True, is False" in outcome.err
  flags = shared_student.flags("other", "--shared-encoder", "--alpha", "1")
  outcome = shared_student("distill", *flags)
  assert outcome.code == 2
  assert "--shared-encoder: with --alpha 1 a row has its label alone" in outcome.err
  assert not (shared_student.folder / "other").exists()
