"""The datasets of T5X's trainer: pairs, the order of examples, hosts, and evaluation."""

import collections
import dataclasses

import numpy as np
import pytest

from dss_jax.data.batches import example_numbers
from dss_jax.errors import UserError

WHY = "T5X is not installed (docs/t5x.md)"
pytestmark = pytest.mark.t5x
pytest.importorskip("t5x.models", reason=WHY, exc_type=ImportError)
data = pytest.importorskip("dss_jax.t5x.data")
converter = pytest.importorskip("dss_jax.t5x.feature_converter")
t5x_utils = pytest.importorskip("t5x.utils")
iterators = pytest.importorskip("clu.data.dataset_iterator")

CONVERTER = converter.StepByStepFeatureConverter


@pytest.fixture(scope="module")
def mixture(data_config):
  return data.training_mixture(data_config)


def batches_of(cfg, count, *, shard=0, shards=1):
  dataset = data.get_dataset(cfg, shard, shards, CONVERTER)
  return list(dataset.take(count).as_numpy_iterator())


def sequences_of(batch):
  """{(input, target): task} of the sequences in a batch's rows, in bytes less their offset."""
  found = collections.Counter()
  for row in range(len(batch["encoder_input_tokens"])):
    for segment in sorted(set(batch["decoder_segment_ids"][row]) - {0}):
      here = batch["decoder_segment_ids"][row] == segment
      (task,) = set(batch["decoder_target_kinds"][row][here])
      inputs = batch["encoder_input_tokens"][row][batch["encoder_segment_ids"][row] == segment]
      found[task, text(inputs), text(batch["decoder_target_tokens"][row][here])] += 1
  return found


def text(tokens):
  assert tokens[-1] == 1
  return bytes(int(token) - 3 for token in tokens[:-1]).decode()


def wanted(rows):
  """What the sequences of rows are, cut as their configuration says."""
  made = collections.Counter()
  for row in rows:
    for task, prefix, key in ((0, "predict: ", "output_text"), (1, "explain: ", "rationale")):
      if key in row:
        made[task, (prefix + row["input_text"])[:47], row[key][:39]] += 1
  return made


def added(counters):
  return sum(counters, collections.Counter())


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_a_step_has_the_examples_of_dss_distill_on_any_hosts(shards, rows, mixture, dataset_config):
  cfg = dataset_config(mixture, batch_size=8)
  hosts = [batches_of(cfg, 12, shard=shard, shards=shards) for shard in range(shards)]
  for step, parts in enumerate(zip(*hosts, strict=True)):
    assert {len(part["decoder_target_kinds"]) for part in parts} == {8 // shards}
    numbers = example_numbers(step, batch_size=8, num_examples=len(rows), seed=3)
    assert added(map(sequences_of, parts)) == wanted(rows[number] for number in numbers)


@pytest.mark.parametrize("shards", [1, 2])
def test_packed_rows_hold_whole_examples(shards, rows, mixture, dataset_config):
  lengths = {"inputs": 48, "targets": 40}
  cfg = dataset_config(mixture, batch_size=4, pack=True, shuffle=False)
  cfg = dataclasses.replace(cfg, task_feature_lengths=lengths)
  partners = {row["input_text"][:38]: set(wanted([row])) for row in rows}
  seen = collections.Counter()
  for shard in range(shards):
    for batch in batches_of(cfg, 3, shard=shard, shards=shards):
      for row in range(4 // shards):
        found = sequences_of({name: x[row : row + 1] for name, x in batch.items()})
        seen += found
        for _, inputs, _ in found:
          assert partners[inputs.partition(": ")[2]] <= set(found)
  assert set(seen) <= set(wanted(rows))
  assert len(seen) > 20


@pytest.mark.parametrize(
  ("pack", "said", "found"), [(True, 256, 256), (True, 48, 88), (False, 256, 88)]
)
def test_rows_have_room_for_an_example_and_with_packing_for_more(
  pack, said, found, rows, mixture, dataset_config
):
  longest = max(len("predict: explain: " + 2 * row["input_text"]) + 2 for row in rows)
  assert 80 < longest <= 88
  cfg = dataset_config(mixture, batch_size=2, pack=pack)
  cfg = dataclasses.replace(cfg, task_feature_lengths={"inputs": said, "targets": 40})
  (batch,) = batches_of(cfg, 1)
  assert batch["encoder_input_tokens"].shape == (2, found)


def test_a_saved_iterator_goes_on_where_it_stopped(tmp_path, mixture, dataset_config):
  cfg = dataset_config(mixture)
  dataset = data.get_dataset(cfg, 0, 1, CONVERTER)
  first = iterators.TfDatasetIterator(dataset, checkpoint=True)
  for _ in range(3):
    next(first)
  first.save(tmp_path / "place")
  second = iterators.TfDatasetIterator(data.get_dataset(cfg, 0, 1, CONVERTER), checkpoint=True)
  second.restore(tmp_path / "place")
  want, got = next(first), next(second)
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array, name)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("shards", [1, 4])
def test_evaluation_sees_every_example_once(pack, shards, rows, data_config, dataset_config):
  name = data.evaluation_mixture(data_config)
  cfg = dataset_config(name, batch_size=4, pack=pack)
  counts, seen = set(), collections.Counter()
  for shard in range(shards):
    ((found, dataset),) = data.get_evaluation_datasets(cfg, shard, shards, 99, CONVERTER).items()
    assert found == name
    batches = list(dataset.as_numpy_iterator())
    counts.add(len(batches))
    assert {len(batch["decoder_target_kinds"]) for batch in batches} == {4 // shards}
    seen += added(map(sequences_of, batches))
  assert seen == wanted(rows[:10])
  (count,) = counts
  assert count == 3 if not pack else count <= 3


def test_evaluation_steps_are_a_limit(data_config, dataset_config):
  cfg = dataset_config(data.evaluation_mixture(data_config), batch_size=2)
  (dataset,) = data.get_evaluation_datasets(cfg, 0, 1, 3, CONVERTER).values()
  assert len(list(dataset)) == 3


def test_t5xs_own_dataset_takes_the_tasks_of_the_evaluation(data_config, dataset_config):
  """As its inference evaluation does: unpacked, one sequence a row, all of them labels."""
  cfg = dataset_config(data.evaluation_task(data_config), batch_size=2, shuffle=False)
  (batch,) = t5x_utils.get_dataset(cfg, 0, 1, CONVERTER).take(1).as_numpy_iterator()
  assert {task for task, _, _ in sequences_of(batch)} == {0}


def test_two_files_of_one_name_are_kept_apart(tmp_path, data_config):
  other = tmp_path / "train.jsonl"
  other.write_text('{"input_text": "Why?", "output_text": "So.", "rationale": "It is so."}\n')
  config = dataclasses.replace(data_config, eval_dataset=str(other))
  assert data.evaluation_mixture(config) != data.training_mixture(config)


def test_what_cannot_be_is_said(data_config, mixture, dataset_config):
  with pytest.raises(UserError, match="multiple of 3, the hosts"):
    data.get_dataset(dataset_config(mixture, batch_size=8), 0, 3, CONVERTER)
  with pytest.raises(UserError, match="multiple of 3, the hosts"):
    data.get_evaluation_datasets(dataset_config(mixture, batch_size=8), 0, 3, 1, CONVERTER)
  with pytest.raises(UserError, match=r"'wmt14'.*training_mixture"):
    data.get_dataset(dataset_config("wmt14"), 0, 1, CONVERTER)
  alone = dataclasses.replace(data_config, eval_dataset=None)
  with pytest.raises(UserError, match="no rows to evaluate on"):
    data.evaluation_mixture(alone)
