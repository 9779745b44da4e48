"""The token store: tokens as made by hand, its fingerprint, damage, kills, and many openers."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from dss_jax.config.schema import LABEL, RATIONALE
from dss_jax.data import token_store
from dss_jax.data.sources import source_from_file, source_from_rows
from dss_jax.data.token_store import open_token_store
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.errors import UserError

ROWS = [
  {"input_text": "a pond", "output_text": "yes", "rationale": "it is wet"},
  {"input_text": "a stone", "output_text": "no"},
  {"input_text": "nothing"},
  {"input_text": "a lake", "rationale": "water – ü"},
  {"input_text": "the sea", "output_text": "yes", "rationale": "salt"},
]
BYTES = load_vocabulary("bytes")


def _open(rows=ROWS, vocabulary=BYTES, inputs=64, outputs=32, **kwargs):
  return open_token_store(
    source_from_rows("ponds", rows),
    vocabulary,
    max_input_tokens=inputs,
    max_output_tokens=outputs,
    **kwargs,
  )


def _by_hand(text, limit, vocabulary=BYTES):
  return [*vocabulary.encode(text)[: limit - 1], vocabulary.eos_id]


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 32), (12, 4), (2, 2)])
def test_tokens_as_made_by_hand(tmp_path, inputs, outputs):
  store = _open(inputs=inputs, outputs=outputs, cache_dir=tmp_path)
  assert store.num_examples == 4
  assert store.row_numbers.tolist() == [0, 1, 3, 4]
  assert store.unusable_rows == 1
  truncated = {task: {"inputs": 0, "targets": 0} for task in ("label", "rationale")}
  longest = {"label": 0, "rationale": 0}
  for example, row in enumerate(store.row_numbers):
    for task, (name, prefix, key) in enumerate(
      [("label", "predict: ", "output_text"), ("rationale", "explain: ", "rationale")]
    ):
      got = store.input_tokens(example, task), store.target_tokens(example, task)
      texts = (prefix + ROWS[row]["input_text"], ROWS[row].get(key))
      expected = [
        _by_hand(text, limit) if texts[1] else []
        for text, limit in zip(texts, (inputs, outputs), strict=True)
      ]
      assert [tokens.tolist() for tokens in got] == expected
      assert all(tokens.dtype == np.int32 for tokens in got)
      assert store.input_lengths[example, task] == len(expected[0])
      assert store.target_lengths[example, task] == len(expected[1])
      if texts[1]:
        truncated[name]["inputs"] += len(texts[0].encode()) + 1 > inputs
        truncated[name]["targets"] += len(texts[1].encode()) + 1 > outputs
        longest[name] = max(longest[name], len(expected[1]))
  assert store.truncated == truncated
  assert store.longest_target_tokens == longest


def test_a_sentencepiece_vocabulary(shared, tmp_path):
  vocabulary = load_vocabulary(next((shared / "data" / "vocab").glob("*.model")))
  store = _open(vocabulary=vocabulary, cache_dir=tmp_path)
  for example, row in enumerate(store.row_numbers):
    if "rationale" in ROWS[row]:
      expected = _by_hand("explain: " + ROWS[row]["input_text"], 64, vocabulary)
      assert store.input_tokens(example, RATIONALE).tolist() == expected
      assert vocabulary.decode(store.target_tokens(example, RATIONALE)) == ROWS[row]["rationale"]


def test_rows_without_any_rationale(tmp_path):
  rows = [{"input_text": str(i), "output_text": "y"} for i in range(3)]
  store = _open(rows, cache_dir=tmp_path)
  assert store.target_lengths.tolist() == [[2, 0]] * 3
  assert store.target_tokens(1, RATIONALE).tolist() == []
  assert store.longest_target_tokens == {"label": 2, "rationale": 0}
  again = _open(rows, cache_dir=tmp_path)
  assert again.input_tokens(2, LABEL).tolist() == _by_hand("predict: 2", 64)


def test_tokens_are_read_only(tmp_path):
  tokens = _open(cache_dir=tmp_path).input_tokens(0, LABEL)
  with pytest.raises(ValueError, match="read-only"):
    tokens[0] = 5


def test_the_fingerprint_follows_data_vocabulary_lengths_and_code(shared, monkeypatch):
  pieces = load_vocabulary(next((shared / "data" / "vocab").glob("*.model")))
  lengths = {"inputs": 64, "targets": 32}

  def key(rows=ROWS, vocabulary=BYTES, lengths=lengths, name="ponds"):
    return token_store.fingerprint(source_from_rows(name, rows), vocabulary, lengths)

  base = key()
  assert base == key(name="other name")
  assert base == key(rows=[{**row, "id": i} for i, row in enumerate(ROWS)])
  assert base == key(lengths={"targets": 32, "inputs": 64})
  others = [
    key(rows=ROWS[:-1]),
    key(rows=ROWS[::-1]),
    key(rows=[{**ROWS[0], "rationale": "it is Wet"}, *ROWS[1:]]),
    key(vocabulary=pieces),
    key(lengths={"inputs": 65, "targets": 32}),
    key(lengths={"inputs": 64, "targets": 33}),
  ]
  monkeypatch.setattr(token_store, "FORMAT_VERSION", 0)
  others.append(key())
  monkeypatch.undo()
  source = dataclasses.replace(source_from_rows("ponds", ROWS), prefixes=("answer: ", "why: "))
  others.append(token_store.fingerprint(source, BYTES, lengths))
  read_bytes = token_store.pathlib.Path.read_bytes
  monkeypatch.setattr(token_store.pathlib.Path, "read_bytes", lambda path: read_bytes(path) + b"#")
  others.append(key())
  assert len({base, *others}) == 1 + len(others)


OPEN = """
import sys
from dss_jax.data.sources import source_from_file
from dss_jax.data.token_store import open_token_store
from dss_jax.data.vocabularies import load_vocabulary
store = open_token_store(
  source_from_file(sys.argv[1]), load_vocabulary("bytes"),
  max_input_tokens=64, max_output_tokens=32, cache_dir=sys.argv[2],
)
print(store.num_examples, int(store.input_lengths.sum()), store.fingerprint)
print(sorted({"tensorflow", "seqio", "jax"} & set(sys.modules)))
"""


def _file(folder, rows=ROWS):
  path = folder / "train.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def _opener(path, cache, code=OPEN):
  return subprocess.Popen(
    [sys.executable, "-c", code, str(path), str(cache)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_two_processes_may_build_at_once_and_the_third_needs_no_tensorflow(tmp_path):
  path = _file(tmp_path)
  first, second = (_opener(path, tmp_path / "cache") for _ in range(2))
  outputs = [process.communicate(timeout=120) for process in (first, second)]
  assert [process.returncode for process in (first, second)] == [0, 0], outputs
  third = _opener(path, tmp_path / "cache")
  output, errors = third.communicate(timeout=60)
  assert third.returncode == 0, errors
  assert output.splitlines()[0] == outputs[0][0].splitlines()[0] == outputs[1][0].splitlines()[0]
  assert output.splitlines()[1] == "[]"
  # The test is about something only if building does import them.
  assert "'tensorflow'" in outputs[0][0] + outputs[1][0]
  assert len(os.listdir(tmp_path / "cache" / "tokens")) == 1


def test_killed_in_the_middle_leaves_no_store(tmp_path):
  rows = [{"input_text": "x" * 500, "output_text": "y"}] * 5000
  code = OPEN.replace(
    "cache_dir=sys.argv[2]", "cache_dir=sys.argv[2], progress=lambda n: print(n, flush=True)"
  )
  with _opener(_file(tmp_path, rows), tmp_path, code) as process:
    assert int(process.stdout.readline()) > 0
    process.send_signal(signal.SIGKILL)
    process.communicate()
  assert all(name.startswith(".") for name in os.listdir(tmp_path / "tokens"))
  store = open_token_store(
    source_from_file(tmp_path / "train.jsonl"),
    BYTES,
    max_input_tokens=64,
    max_output_tokens=32,
    cache_dir=tmp_path,
  )
  assert store.num_examples == 5000
  assert os.listdir(tmp_path / "tokens") == [store.fingerprint]


def _flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


DAMAGE = {
  "a token": lambda folder: _flip(folder / "label_inputs.int32"),
  "a start": lambda folder: _flip(folder / "rationale_targets_starts.int64"),
  "a row": lambda folder: _flip(folder / "rows.int64"),
  "cut": lambda folder: os.truncate(folder / "rationale_targets.int32", 8),
  "a file gone": lambda folder: (folder / "rows.int64").unlink(),
  "meta gone": lambda folder: (folder / "meta.json").unlink(),
  "meta cut": lambda folder: os.truncate(folder / "meta.json", 30),
  "meta no object": lambda folder: (folder / "meta.json").write_text("[]"),
  "a figure": lambda folder: (folder / "meta.json").write_text(
    (folder / "meta.json").read_text().replace('"unusable_rows": 1', '"unusable_rows": 2')
  ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_built_anew_and_said_in_one_line(tmp_path, damage, caplog):
  store = _open(cache_dir=tmp_path)
  folder = tmp_path / "tokens" / store.fingerprint
  whole = {path.name: path.read_bytes() for path in folder.iterdir()}
  DAMAGE[damage](folder)
  assert {path.name: path.read_bytes() for path in folder.iterdir()} != whole
  with caplog.at_level(logging.WARNING, logger="dss_jax"):
    again = _open(cache_dir=tmp_path)
  ours = [record for record in caplog.records if record.name.startswith("dss_jax")]
  assert [str(folder) in record.getMessage() for record in ours] == [True]
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
  assert again.target_tokens(0, RATIONALE).tolist() == _by_hand("it is wet", 32)
  # What was mapped before stays readable.
  assert store.num_examples == again.num_examples


def test_a_whole_store_is_not_built_again(tmp_path, monkeypatch, caplog):
  _open(cache_dir=tmp_path)
  monkeypatch.setattr(token_store, "write_tokens", None)
  assert _open(cache_dir=tmp_path).num_examples == 4
  assert [record for record in caplog.records if record.name.startswith("dss_jax")] == []


def test_the_store_of_another_fingerprint_is_not_taken(tmp_path):
  first = _open(cache_dir=tmp_path)
  other = _open(rows=ROWS[:2], cache_dir=tmp_path)
  tokens = tmp_path / "tokens"
  shutil.rmtree(tokens / first.fingerprint)
  shutil.copytree(tokens / other.fingerprint, tokens / first.fingerprint)
  assert _open(cache_dir=tmp_path).num_examples == 4


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
  monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path / "env"))
  store = _open()
  assert os.listdir(tmp_path / "env" / "tokens") == [store.fingerprint]
  monkeypatch.delenv("DSS_CACHE_DIR")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  store = _open()
  assert os.listdir(tmp_path / "home/.cache/dss_jax/tokens") == [store.fingerprint]


def test_progress_counts_sequences(tmp_path):
  done = []
  _open([*ROWS] * 100, cache_dir=tmp_path, progress=done.append)
  assert done == sorted(done)
  assert len(done) > 2
  assert done[-1] == 600


def test_mistakes_of_the_user(tmp_path):
  with pytest.raises(UserError, match="max_output_tokens is 1, but it must be at least 2"):
    _open(outputs=1, cache_dir=tmp_path)
  with pytest.raises(UserError, match="none of the 1 rows has an"):
    _open([{"input_text": "x"}], cache_dir=tmp_path)
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=r"cannot be written or read .* DSS_CACHE_DIR"):
    _open(cache_dir=tmp_path / "file")


def test_rows_that_change_while_they_are_read_are_refused(tmp_path):
  path = _file(tmp_path)
  source = source_from_file(path)
  for content in ("", "broken", json.dumps(ROWS[0]) + "\n"):
    path.write_text(content)
    with pytest.raises(UserError):
      open_token_store(
        source, BYTES, max_input_tokens=64, max_output_tokens=32, cache_dir=tmp_path / "cache"
      )
  assert os.listdir(tmp_path / "cache" / "tokens") == []
