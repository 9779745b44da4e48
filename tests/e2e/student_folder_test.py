"""What a finished run leaves: a folder that tells all about the student and can be moved."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import signal

import jax
import numpy as np

from dss_jax.config.gin_loader import load_config, to_gin
from dss_jax.config.schema import MeshConfig, RunConfig
from dss_jax.parallel.mesh import make_mesh
from dss_jax.student.student import Student

EVALUATE = ("evaluate", "--mesh", "data=1", "--dataset", "eval.jsonl")


def predict(workshop, *arguments, model="student", dataset="eval.jsonl"):
  """The rows that `dss predict` writes."""
  outcome = workshop(
    *("predict", "--mesh", "data=1", "--model", model, "--dataset", dataset),
    *("--output", "answers.jsonl", *arguments),
  )
  assert outcome.code == 0, outcome.err
  rows = workshop.read("answers.jsonl")
  assert outcome.json == {"output": "answers.jsonl", "rows": len(rows)}
  return rows


def evaluations(workshop, model_dir):
  """The evaluations of a run by step."""
  lines = workshop.numbers(model_dir)
  return {
    line["step"]: {name: value for name, value in line.items() if name != "step"}
    for line in lines
    if "eval_total_loss" in line
  }


def test_the_configuration_reloads(finished):
  path = finished.folder / "student" / "config.gin"
  config = load_config(RunConfig, [str(path)])
  assert config == Student.open(path.parent).config
  assert path.read_text().endswith(to_gin(config))
  assert (config.train_steps, config.batch_size, config.student) == (4, 4, "tiny")
  assert config.data.feature_lengths == {"inputs": 64, "targets": 32}
  assert config.model.vocab_size == 384


def test_the_card(finished):
  card = finished.card()
  assert card["student"] == "tiny"
  assert card["vocabulary"] == {"spec": "bytes", "digest": "bytes-384", "size": 384, "file": None}
  assert card["prefixes"] == {"label": "predict: ", "rationale": "explain: "}
  rows = finished.read("train.jsonl")
  longest = [max(len(row[key]) for row in rows) + 1 for key in ("output_text", "rationale")]
  assert list(card["longest_target_tokens"].values()) == longest
  assert len(card["data"]["train"]) == len(card["data"]["evaluation"]) == 64
  assert card["data"]["report"]["train"]["rows"] == 40
  assert card["data"]["report"]["evaluation"]["rows"] == 12
  assert card["finished"]
  assert card["steps"] == 4
  assert card["metrics"] == evaluations(finished, "student")[card["best_step"]]
  assert card["versions"]["jax"] == jax.__version__
  assert card["versions"]["orbax-checkpoint"] == importlib.metadata.version("orbax-checkpoint")


def test_the_summary_on_standard_output(dss):
  outcome = dss.train("student")
  card = dss.card()
  keys = ("student", "steps", "best_step", "stopped_early", "metrics")
  assert outcome.json == {"model_dir": "student", **{key: card[key] for key in keys}}


def test_the_gin_way_gives_the_same_student(with_student):
  settings = {
    "MODEL_DIR": "again",
    "DATASET": "train.jsonl",
    "EVAL_DATASET": "eval.jsonl",
    "VOCABULARY": "bytes",
    "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 32},
    "TRAIN_STEPS": 4,
    "BATCH_SIZE": 4,
    "EVAL_PERIOD": 2,
    "MeshConfig.data": 1,
    "T5Config.num_encoder_layers": 1,
    "T5Config.num_decoder_layers": 1,
  }
  outcome = with_student(
    "train",
    "--gin_file=gin_configs/runs/distill.gin",
    "--gin_file=gin_configs/models/tiny.gin",
    *(f"--gin.{name}={value!r}" for name, value in settings.items()),
  )
  assert outcome.code == 0, outcome.err
  ours, theirs = (Student.open(with_student.folder / name) for name in ("again", "student"))
  assert dataclasses.replace(ours.config, model_dir="student") == theirs.config
  assert with_student.numbers("again") == with_student.numbers("student")
  weights = with_student.weights("again"), with_student.weights("student")
  jax.tree.map(np.testing.assert_array_equal, *weights)


def test_tune_learns_labels_alone(dss):
  dss.train("tuned", command="tune")
  lines = dss.numbers("tuned")
  assert not any("rationale" in name for line in lines for name in line)
  labels = [row["output_text"] for row in dss.read("eval.jsonl")]
  assert lines[-1]["eval_num_predictions"] == sum(len(label) + 1 for label in labels)
  assert lines[-1]["eval_total_loss"] == lines[-1]["label/eval_loss"]

  bare = [
    {key: row[key] for key in ("input_text", "output_text")} for row in dss.read("train.jsonl")
  ]
  dss.write("train.jsonl", bare)
  dss.train("bare", command="tune")
  assert dss.numbers("bare") == lines
  jax.tree.map(np.testing.assert_array_equal, dss.weights("bare"), dss.weights("tuned"))


def test_predict_keeps_rows_and_their_order(with_student):
  rows = with_student.read("eval.jsonl")[:7]
  for number, row in enumerate(rows):
    row["input_text"] += " please" * (number * 3 % 7)
    row["note"] = {"of": [number, None]}
  with_student.write("asked.jsonl", [{**row, "rationale": "mine"} for row in rows])
  answers = predict(with_student, dataset="asked.jsonl")
  assert [{**row, "rationale": "mine"} for row in rows] == [
    {key: value for key, value in answer.items() if key != "prediction"} for answer in answers
  ]
  assert all(isinstance(answer["prediction"], str) for answer in answers)
  assert predict(with_student, dataset="asked.jsonl") == answers
  assert predict(with_student, "--batch-size", "1", dataset="asked.jsonl") == answers

  explained = predict(with_student, "--explain", dataset="asked.jsonl")
  assert [row["prediction"] for row in explained] == [row["prediction"] for row in answers]
  assert all(row["rationale"] != "mine" for row in explained)


def test_predict_samples_candidates(with_student):
  sampled = ("--temperature", "1", "--num-candidates", "2", "--log-probabilities", "--top-k", "9")
  rows = predict(with_student, *sampled)
  for row in rows:
    first, _ = row["prediction_candidates"]
    assert first["text"] == row["prediction"]
    assert len(first["ids"]) == len(first["log_probabilities"])
  assert any(len({each["text"] for each in row["prediction_candidates"]}) == 2 for row in rows)
  assert predict(with_student, *sampled, "--batch-size", "3") == rows
  assert predict(with_student, *sampled, "--seed", "1") != rows


def test_predict_refuses_settings_without_effect(with_student):
  outcome = with_student(
    *("predict", "--model", "student", "--dataset", "eval.jsonl", "--output", "answers.jsonl"),
    *("--top-k", "5"),
  )
  assert outcome.code == 2
  assert "--top-k 5 has no effect on the most likely tokens" in outcome.err
  assert not (with_student.folder / "answers.jsonl").exists()


def test_predict_tells_of_cut_inputs(with_student):
  rows = [{"input_text": "long " * 20}, {"input_text": "short"}]
  with_student.write("asked.jsonl", rows)
  outcome = with_student(
    *("predict", "--mesh", "data=1", "--model", "student", "--dataset", "asked.jsonl"),
    *("--output", "answers.jsonl"),
  )
  assert "warning: 1 of 2 inputs were cut" in outcome.err


DIE_AT_THE_SECOND_PIECE = """
import os, signal
from dss_jax.decoding.engine import Engine
decode, pieces = Engine.decode, []
def decode_and_die(*arguments, **options):
  for piece in decode(*arguments, **options):
    pieces.append(piece)
    if len(pieces) == 2:
      os.kill(os.getpid(), signal.SIGKILL)
    yield piece
Engine.decode = decode_and_die
from dss_jax.cli.main import main; main()
"""


def test_predict_killed_in_the_middle_leaves_the_output_as_it_was(with_student):
  output = with_student.folder / "answers.jsonl"
  output.write_text("what was there before")
  arguments = ("--mesh", "data=1", "--model", "student", "--dataset", "eval.jsonl")
  process = with_student.start(
    "predict", *arguments, "--output", output.name, code=DIE_AT_THE_SECOND_PIECE
  )
  assert with_student.finish(process).code == -signal.SIGKILL
  assert output.read_text() == "what was there before"
  assert not list(with_student.folder.glob("answers.jsonl?*"))


def test_evaluate_counts_what_predict_writes(with_student):
  answers = [row for row in predict(with_student) if row["prediction"].strip()]
  assert len(answers) > 4
  judged = [
    {**row, "output_text": row["prediction"] if number % 3 else row["prediction"] + "!"}
    for number, row in enumerate(answers)
  ]
  with_student.write("eval.jsonl", [*judged, {"input_text": "No label.", "rationale": "None."}])
  figures = with_student(*EVALUATE, "--model", "student").json
  right = sum(row["output_text"] == row["prediction"] for row in judged)
  assert figures["labelled"] == len(judged)
  assert figures["rows"] == len(judged) + 1
  assert figures["exact_match"] == right / len(judged)
  assert figures["task_metrics"] == {"accuracy": 100 * right / len(judged)}
  labels = sum(len(row["output_text"].encode()) + 1 for row in judged)
  rationales = sum(len(row["rationale"].encode()) + 1 for row in [*judged, {"rationale": "None."}])
  assert figures["eval_num_predictions"] == labels + rationales
  losses = [figures[f"{task}/eval_loss"] for task in ("label", "rationale")]
  assert math.isclose(figures["eval_total_loss"], sum(losses) / 2, rel_tol=1e-6)


def test_evaluate_compares_with_what_the_vocabulary_can_write(with_words):
  rows = predict(with_words)
  judged = [{**row, "output_text": row["prediction"] + "a  b " * (n % 2)} for n, row in
            enumerate(rows) if row["prediction"].strip()]  # fmt: skip
  with_words.write("eval.jsonl", judged)
  written = Student.open(with_words.folder / "student").vocabulary.writable(
    row["output_text"] for row in judged
  )
  outcome = with_words(*EVALUATE, "--model", "student")
  given = [row["output_text"] for row in judged]
  answers = [row["prediction"] for row in judged]
  changed = sum(map(str.__ne__, given, written))
  assert outcome.json["labels_changed_by_vocabulary"] == changed >= len(judged) // 2 > 0
  assert outcome.json["exact_match"] == sum(map(str.__eq__, written, answers)) / len(judged)
  as_given = sum(map(str.__eq__, given, answers)) / len(judged)
  assert outcome.json["as_given"]["exact_match"] == as_given
  assert f"{changed} of {len(judged)} labels cannot be written" in outcome.err


def test_the_best_checkpoint_is_handed_on(whole):
  card, lines = whole.card("whole"), evaluations(whole, "whole")
  best = max(
    lines, key=lambda step: (lines[step]["label/eval_accuracy"], -lines[step]["label/eval_loss"])
  )
  assert card["best_step"] == best < card["steps"]
  assert card["metrics"] == lines[best] != lines[card["steps"]]
  figures = whole(*EVALUATE, "--model", "whole").json
  assert figures["best_step"] == best
  for name, value in lines[best].items():
    assert math.isclose(figures[name], value, rel_tol=1e-6)
  params = Student.open(whole.folder / "whole").params(make_mesh(MeshConfig(data=1), 4))
  jax.tree.map(np.testing.assert_array_equal, params, whole.weights("whole")[best])


def without_growth(accuracies):
  """How many evaluations in a row have brought nothing, after each of them."""
  counts = []
  for number in range(len(accuracies)):
    best = accuracies.index(max(accuracies[: number + 1]))
    counts.append(number - best)
  return counts


def test_without_stopping_and_selection_the_last_step_is_handed_on(with_student, whole):
  options = ("--no-early-stopping", "--no-checkpoint-selection")
  with_student.train("longer", *with_student.LONG, *options)
  card, lines = with_student.card("longer"), evaluations(with_student, "longer")
  assert (card["steps"], card["best_step"], card["stopped_early"]) == (40, 40, False)
  assert card["metrics"] == lines[40]
  assert with_student.weights("longer").keys() == {40}
  # The run that did stop early did so where five evaluations had brought nothing.
  steps = list(lines)
  counts = without_growth([lines[step]["label/eval_accuracy"] for step in steps])
  assert whole.card("whole")["steps"] == steps[counts.index(5)]


def test_without_evaluation_data_the_last_step_is_handed_on(dss):
  outcome = dss(
    *("distill", *dss.TINY, "--dataset", "train.jsonl", "--model-dir", "student"),
    *("--train-steps", "4", "--batch-size", "4", "--evaluation-interval", "3"),
  )
  assert outcome.code == 0, outcome.err
  assert "no evaluation data" in outcome.err
  assert (dss.card()["best_step"], dss.card()["metrics"]) == (4, {})
  assert dss.card()["data"]["evaluation"] is None
  predict(dss)


def test_a_run_that_diverges_keeps_the_last_good_checkpoint(with_student):
  """As if the four good steps had been taken with the rate that ruins those after them."""
  answers = predict(with_student)
  config = with_student.folder / "student" / "config.gin"
  config.write_text(config.read_text().replace("_multiplier = 1.0", "_multiplier = 1e+30"))
  flags = ("--learning-rate-multiplier", "1e30", "--train-steps", "8")
  before = with_student.tree("student/checkpoints")
  for _ in range(2):
    outcome = with_student("distill", *with_student.flags("student", *flags))
    assert outcome.code == 1
    assert outcome.out == ""
    sentence = outcome.err.splitlines()[-1]
    assert sentence.startswith(("dss: step 5: ", "dss: step 6: "))
    for part in ("checkpoint of step 4 is kept", "--learning-rate-multiplier", "warmup_steps"):
      assert part in sentence
    assert with_student.tree("student/checkpoints") == before
  lines = with_student.numbers()
  assert all(math.isfinite(value) for line in lines for value in line.values())
  assert predict(with_student) == answers


def test_a_moved_student_answers_alike(with_student, tmp_path, finished):
  answers = predict(with_student)
  (with_student.folder / "student").rename(tmp_path / "elsewhere")
  assert predict(with_student, model=str(tmp_path / "elsewhere")) == answers
  assert (
    predict(with_student, model=os.path.relpath(tmp_path / "elsewhere", with_student.folder))
    == answers
  )


def test_a_student_brings_its_vocabulary(worded, pieces, tmp_path):
  card = worded.card()
  copy = worded.folder / "student" / "sentencepiece.model"
  assert card["vocabulary"]["file"] == copy.name
  assert card["vocabulary"]["spec"] == "pieces.model"
  assert not (worded.folder / "pieces.model").exists()
  with open(pieces, "rb") as original:
    model = original.read()
  assert copy.read_bytes() == model
  assert card["vocabulary"]["digest"] == hashlib.sha256(model + b"+100").hexdigest()
  assert len(predict(worded)) == 12
  assert worded(*EVALUATE, "--model", "student").code == 0


def test_a_published_task(dss, shared):
  flags = [*dss.TINY, "--task", "svamp", "--data-dir", shared / "data" / "svamp"]
  outcome = dss("distill", *flags, "--model-dir", "svamp", "--train-steps", "2")
  assert outcome.code == 0, outcome.err
  card = dss.card("svamp")
  source = card["data"]["report"]["train_source"]
  assert (source["task"], source["rows"], source["labelled"]) == ("svamp", 720, 720)
  assert f"train: {source['teacher']['parsed']} of 720 teacher's answers parse" in outcome.err
  assert card["data"]["report"]["evaluation_source"]["rows"] == 80
  assert card["metrics"]["eval_num_predictions"] > 0
  flags = ["--task", "svamp", "--data-dir", shared / "data" / "svamp", "--split", "validation"]
  figures = dss("evaluate", "--model", "svamp", "--mesh", "data=1", *flags).json
  assert figures["labelled"] == 80
  assert figures["task_metrics"].keys() == {"accuracy", "exact_match"}
  assert math.isclose(figures["eval_total_loss"], card["metrics"]["eval_total_loss"], rel_tol=1e-6)
  assert json.loads(json.dumps(figures)) == figures


def test_inputs_that_look_different_are_named(finished):
  rows = [{"input_text": text} for text in ("Add 1 and 2.", "Combien font 1 et 2, cher ami ?")]
  finished.write("new.jsonl", rows * 2)
  outcome = finished(
    *("predict", "--mesh", "data=1", "--model", "student", "--dataset", "new.jsonl"),
    *("--output", "answers.jsonl"),
  )
  assert "warning: 2 of 4 inputs look different" in outcome.err
  assert "(rows 2, 4: 'Combien font 1 et 2" in outcome.err
  predict(finished)
  assert "look different" not in finished(*EVALUATE, "--model", "student").err
