"""Rows through SeqIO's own interface: prefixes, tokens, end marks, trimming, pairing, metrics."""

import subprocess
import sys

import numpy as np
import pytest

from dss_jax.data import seqio_tasks
from dss_jax.data.sources import source_from_rows
from dss_jax.data.vocabularies import load_vocabulary

seqio = seqio_tasks.seqio

ROWS = [
  {"input_text": "a pond", "output_text": "yes", "rationale": "it is wet"},
  {"input_text": "a stone", "output_text": "no"},
  {"input_text": "a lake", "rationale": "water – ü"},
  {"input_text": "nothing"},
  {"input_text": "the sea", "output_text": "yes", "rationale": "salt"},
]
LENGTHS = {"inputs": 100, "targets": 50}


@pytest.fixture
def vocabulary():
  return load_vocabulary("bytes")


def _examples(name, lengths=LENGTHS, **kwargs):
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    sequence_length=lengths, split="train", shuffle=False, **kwargs
  )
  return list(dataset.as_numpy_iterator())


def test_tasks_through_seqios_own_interface(vocabulary):
  seqio_tasks.register(source_from_rows("ponds", ROWS), vocabulary)
  predict, explain = _examples("ponds_predict"), _examples("ponds_explain")
  assert [int(example["row"]) for example in predict] == [0, 1, 4]
  assert [int(example["row"]) for example in explain] == [0, 2, 4]
  for examples, prefix, key in (
    (predict, "predict: ", "output_text"),
    (explain, "explain: ", "rationale"),
  ):
    for example in examples:
      row = ROWS[example["row"]]
      inputs = [*vocabulary.encode(prefix + row["input_text"]), vocabulary.eos_id]
      targets = [*vocabulary.encode(row[key]), vocabulary.eos_id]
      assert example["inputs"].tolist() == inputs
      assert example["targets"].tolist() == targets
      assert example["inputs"].dtype == example["targets"].dtype == np.int32
      assert (example["inputs_tokens"], example["targets_tokens"]) == (len(inputs), len(targets))
      assert example["targets_pretokenized"].decode() == row[key]


def test_trimming_keeps_the_end_mark_and_the_full_count(vocabulary):
  seqio_tasks.register(source_from_rows("ponds", ROWS), vocabulary)
  example = _examples("ponds_explain", {"inputs": 11, "targets": 3})[0]
  assert example["inputs"].tolist() == [*vocabulary.encode("explain: a"), vocabulary.eos_id]
  assert example["targets"].tolist() == [*vocabulary.encode("it"), vocabulary.eos_id]
  assert (example["inputs_tokens"], example["targets_tokens"]) == (16, 10)


def test_the_mixture_holds_both_tasks(vocabulary):
  mixture = seqio_tasks.register(source_from_rows("ponds", ROWS), vocabulary)
  assert mixture is seqio.get_mixture_or_task("ponds")
  assert [task.name for task in mixture.tasks] == ["ponds_explain", "ponds_predict"]
  assert [mixture.get_rate(task) for task in mixture.tasks] == [3.0, 3.0]
  examples = _examples("ponds", passthrough_features=["row"], num_epochs=10)
  prompts = {vocabulary.decode(example["inputs"]) for example in examples}
  assert {"predict: a pond", "explain: a lake"} <= prompts


def test_a_mixture_leaves_an_empty_task_out(vocabulary):
  labelled = [row for row in ROWS if "rationale" not in row]
  mixture = seqio_tasks.register(source_from_rows("bare", labelled), vocabulary)
  assert [task.name for task in mixture.tasks] == ["bare_predict"]
  assert [int(example["row"]) for example in _examples("bare_predict")] == [0]
  assert _examples("bare_explain") == []
  with pytest.raises(ValueError, match="no row has a label or a rationale"):
    seqio_tasks.register(source_from_rows("none", [{"input_text": "x"}]), vocabulary)


def test_registering_a_name_again_replaces_it(vocabulary):
  seqio_tasks.register(source_from_rows("again", ROWS), vocabulary)
  other = [{"input_text": "new", "output_text": "n", "rationale": "r"}]
  seqio_tasks.register(source_from_rows("again", other), vocabulary)
  assert len(_examples("again_predict")) == len(_examples("again_explain")) == 1
  assert vocabulary.decode(_examples("again", num_epochs=1)[0]["inputs"]).endswith(": new")


def test_the_predict_task_carries_the_metric(vocabulary, small_vocabulary):
  seen = []

  def metric(targets, predictions):
    seen.append((targets, predictions))
    return {"half": 50.0}

  seqio_tasks.register(source_from_rows("measured", ROWS, metric), vocabulary)
  predict = seqio.get_mixture_or_task("measured_predict")
  (metric_fn,) = predict.metric_fns
  assert metric_fn(["a"], predictions=["b"]) == {"half": 50.0}
  assert seen == [(["a"], ["b"])]
  # Targets are what the vocabulary can write of them, as the predictions are.
  seqio_tasks.register(source_from_rows("measured", ROWS, metric), small_vocabulary)
  (metric_fn,) = seqio.get_mixture_or_task("measured_predict").metric_fns
  metric_fn(["red  box "], predictions=["red box"])
  assert seen[-1] == (["red box"], ["red box"])
  # SeqIO sorts metrics by their parameters' names, and passes over those it does not know.
  assert len(predict.predict_metric_fns) == 1
  assert seqio.get_mixture_or_task("measured_explain").metric_fns == []


def test_order_is_kept_over_many_chunks_and_batches(vocabulary):
  rows = [{"input_text": f"row {i}", "output_text": f"{i}"} for i in range(700)]
  seqio_tasks.register(source_from_rows("many", rows), vocabulary)
  batches = list(seqio_tasks.token_batches("many_predict", LENGTHS))
  assert len(batches) > 1
  assert np.concatenate([batch.rows for batch in batches]).tolist() == list(range(700))
  targets = np.concatenate([batch.tokens["targets"] for batch in batches])
  lengths = np.concatenate([batch.lengths["targets"] for batch in batches])
  ends = np.cumsum(lengths)
  for i in (0, 9, 10, 255, 256, 699):
    assert vocabulary.decode(targets[ends[i] - lengths[i] : ends[i]]) == str(i)


def test_a_sentencepiece_vocabulary_gives_the_same_ids(shared):
  vocabulary = load_vocabulary(next((shared / "data" / "vocab").glob("*.model")))
  seqio_tasks.register(source_from_rows("pieces", ROWS), vocabulary)
  for example in _examples("pieces_explain"):
    row = ROWS[example["row"]]
    expected = vocabulary.encode("explain: " + row["input_text"])
    assert example["inputs"].tolist() == [*expected, vocabulary.eos_id]
    assert example["targets"].tolist()[:-1] == vocabulary.encode(row["rationale"])


def test_importing_is_quiet_and_hides_accelerators():
  code = (
    "from dss_jax.data import seqio_tasks\n"
    "assert seqio_tasks.tf.config.get_visible_devices('GPU') == []\n"
    "assert len(seqio_tasks.tf.constant([1, 2])) == 2\n"
  )
  run = subprocess.run(
    [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/"
  )
  assert (run.stdout, run.stderr) == ("", "")
