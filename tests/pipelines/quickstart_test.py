"""The quickstart: its rows, its baselines, and both runs with a few steps."""

import json

from dss_jax.config.gin_loader import Binding
from dss_jax.data.records import read_rows
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.pipelines import quickstart, quickstart_data


def test_rows_depend_only_on_the_seed():
  rows = quickstart_data.make_rows(3, 50)
  assert rows == quickstart_data.make_rows(3, 80)[:50]
  assert rows != quickstart_data.make_rows(4, 50)
  assert len({row["input_text"] for row in rows}) == 50


def test_the_rationale_judges_every_part_and_ends_with_the_label():
  for row in quickstart_data.make_rows(0, 30):
    findings, label = row["rationale"].split(" so ")
    words = findings.split()
    verdicts = dict(zip(words[::2], words[1::2], strict=True))
    part, verdict = label.split()
    assert label == row["output_text"]
    assert len(verdicts) == 9
    assert verdicts[part] == verdict
    assert f"how is the {part} in" in row["input_text"]


def test_the_vocabulary_has_the_words_of_the_training_rows(tmp_path):
  rows = quickstart_data.make_rows(0, 200)
  path = tmp_path / "vocabulary.model"
  quickstart_data.write_vocabulary(path, rows)
  vocabulary = load_vocabulary(path)
  for row in rows[:20]:
    for key in ("input_text", "output_text", "rationale"):
      ids = vocabulary.encode(row[key])
      assert vocabulary.unk_id not in ids
      assert vocabulary.decode(ids) == row[key]


def test_baselines_equal_a_hand_calculation():
  training = [{"output_text": label} for label in ("bed bad", "bed bad", "bed good", "pool good")]
  targets = ["bed bad", "bed good", "pool good", "pool bad"]
  assert quickstart._baselines(training, targets) == {
    "commonest label": 25.0,
    "right part, commonest verdict": 50.0,
  }


def test_both_students_are_evaluated_on_held_out_rows(tmp_path, capsys):
  settings = [
    Binding("TRAIN_STEPS", 2, "test"),
    Binding("T5Config.emb_dim", 16, "test"),
    Binding("T5Config.mlp_dim", 16, "test"),
    Binding("T5Config.num_encoder_layers", 1, "test"),
    Binding("T5Config.num_decoder_layers", 1, "test"),
    Binding("MeshConfig.data", 1, "test"),
  ]
  results = quickstart.run(str(tmp_path), 5, settings)
  assert list(results["exact_match_percent"]) == [
    "commonest label",
    "right part, commonest verdict",
    "labels alone",
    "step by step",
  ]
  assert json.loads((tmp_path / "quickstart.json").read_text()) == results
  inputs = {
    name: {row["input_text"] for row in read_rows(tmp_path / "data" / name)}
    for name in ("train.jsonl", "eval.jsonl", "test.jsonl")
  }
  assert [len(texts) for texts in inputs.values()] == [200, 50, 400]
  assert len(set.union(*inputs.values())) == 650
  quickstart.show(results, str(tmp_path))
  printed = capsys.readouterr().out
  assert "step by step" in printed
