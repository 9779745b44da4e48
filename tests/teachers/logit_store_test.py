"""Next tokens on disk: written in parts, read at their positions, refused where they differ."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from dss_jax.config.schema import DataConfig, LossConfig, ResponseConfig, SignalConfig
from dss_jax.data.batches import BatchLayout, PackedBatches
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.errors import UserError
from dss_jax.losses.signals import ALIGNED
from dss_jax.teachers import logit_writer
from dss_jax.teachers.logit_files import META, LogitSettings, read_meta
from dss_jax.teachers.logit_store import LogitStore, check_model, check_run
from dss_jax.teachers.logit_writer import LogitWriter, check_output, locked

WORDS, COUNT, EXAMPLES = 40, 5, 9
DATA = DataConfig(dataset="rows", feature_lengths={"inputs": 20, "targets": 16})


def settings_of(mode, **changes):
  values = {
    "mode": mode,
    "count": COUNT,
    "temperature": 1.0,
    "words": WORDS,
    "seed": 0 if mode == "draws" else None,
    "tokens": "rows",
    "teacher_tokens": "rows",
    "vocabulary": {"spec": "bytes", "digest": "bytes-384"},
    "lengths": {"inputs": 20, "targets": 16},
    "teacher": "teacher",
  }
  return LogitSettings(**{**values, **changes})


@pytest.fixture(scope="module")
def tokens(make_store):
  """The examples as a token store that is called "rows"."""
  store = make_store(EXAMPLES)
  return types.SimpleNamespace(
    fingerprint="rows",
    target_lengths=store.target_lengths,
    input_lengths=store.input_lengths,
    input_tokens=store.input_tokens,
    target_tokens=store.target_tokens,
  )


@pytest.fixture(scope="module")
def arrays(tokens):
  """What a teacher gives at each position of each example: ids and values."""
  rng = np.random.default_rng(0)

  def of_example(mode, example):
    positions = int(tokens.target_lengths[example].sum())
    ids = rng.integers(0, WORDS if mode == "top-k" else 4, (positions, COUNT))
    if mode == "draws":
      return ids, rng.random(positions).astype(np.float32)
    values = np.log(-np.sort(-rng.dirichlet(np.ones(WORDS), positions))[:, :COUNT])
    if mode == "sorted":
      values[::3] = -np.inf
    return ids, values.astype(np.float32)

  return {
    mode: [of_example(mode, example) for example in range(EXAMPLES)]
    for mode in ("top-k", "draws", "sorted")
  }


def append(writer, settings, arrays, examples):
  for example in examples:
    ids, values = arrays[settings.mode][example]
    aligned = np.isfinite(values.reshape(len(values), -1)[:, 0]).sum()
    writer.append(settings.encoded((ids, values)), int(aligned))


def write(folder, settings, arrays, tokens):
  with locked(str(folder)) as path:
    writer = LogitWriter(path, settings, batch_size=1)
    append(writer, settings, arrays, range(writer.batches, EXAMPLES))
    meta = writer.finish("the teacher", int(tokens.target_lengths.sum()))
    writer.close()
  return meta


@pytest.fixture(scope="module")
def written(tmp_path_factory, arrays, tokens):
  """A finished folder of each mode."""
  folders = {}
  for mode in ("top-k", "draws", "sorted"):
    folders[mode] = tmp_path_factory.mktemp("logits") / mode
    write(folders[mode], settings_of(mode), arrays, tokens)
  return folders


def files_of(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def opened(folder, tokens):
  return LogitStore(folder, read_meta(folder), tokens, load_vocabulary("bytes"), DATA)


@pytest.mark.parametrize("mode", ["top-k", "draws", "sorted"])
def test_what_is_written_stands_at_its_positions(written, arrays, tokens, row_costs, mode):
  """In a packed batch of some examples; each position's words, whatever their number."""
  store = opened(written[mode], tokens)
  examples = np.array([7, 2, 3, 8])
  batches = PackedBatches(
    tokens,
    kinds=(0, 1),
    planned_for=[examples],
    costs=row_costs,
    layout=BatchLayout(features=store.features),
  )
  packing, sequences = batches.pack(examples)
  batch = batches.fill(packing, sequences)
  signal = jax.device_get(store.signal(batch))
  for row, numbers in enumerate(packing.members):
    start = 0
    for example, kind in (sequences[number] for number in numbers):
      length = int(tokens.target_lengths[example, kind])
      first = 0 if kind == 0 else int(tokens.target_lengths[example, 0])
      ids, values = (each[first : first + length] for each in arrays[mode][example])
      here = (row, slice(start, start + length))
      if mode == "draws":
        counts = np.zeros((length, WORDS))
        np.add.at(counts, (np.arange(length)[:, None], ids), 1)
        found = np.zeros((length, WORDS))
        np.add.at(
          found, (np.arange(length)[:, None], signal.ids_RMK[here]), signal.counts_RMK[here]
        )
        np.testing.assert_array_equal(found, counts)
        np.testing.assert_array_equal(signal.entropy_RM[here], values)
        assert signal.ids_RMK.shape[-1] == 4  # The most distinct words, not the draws.
      else:
        np.testing.assert_allclose(
          signal.sorted_probabilities()[here], np.exp(values), rtol=3e-3, atol=1e-6
        )
      if mode == "top-k":
        np.testing.assert_array_equal(signal.ids_RMK[here], ids)
      is_known = np.isfinite(values.reshape(length, -1)[:, 0])
      np.testing.assert_array_equal(batch[ALIGNED][here], is_known)
      start += length
    assert not np.any(batch[ALIGNED][row, start:])


@pytest.mark.parametrize("mode", ["top-k", "draws"])
def test_a_killed_writer_goes_on_to_the_same_files(
  tmp_path, monkeypatch, written, arrays, tokens, mode
):
  """What it wrote after the last commit is cut off, whole or not."""
  monkeypatch.setattr(logit_writer, "COMMIT_BATCHES", 3)
  folder, settings = tmp_path / "logits", settings_of(mode)
  with locked(str(folder)) as path:
    writer = LogitWriter(path, settings, batch_size=1)
    append(writer, settings, arrays, range(5))
    writer.close()
  with (folder / settings.file_of("ids")).open("ab") as file:
    file.write(b"\xff" * 7)
  assert not (folder / META).exists()
  with pytest.raises(UserError, match=r"has no meta\.json"):
    read_meta(folder)
  with locked(str(folder)) as path:
    writer = LogitWriter(path, settings, batch_size=1)
    assert writer.batches == 3
    writer.close()
  write(folder, settings, arrays, tokens)
  assert files_of(folder) == files_of(written[mode])


def test_a_writer_that_was_killed_at_once(tmp_path, written, arrays, tokens):
  folder, settings = tmp_path / "logits", settings_of("top-k")
  with locked(str(folder)) as path:
    writer = LogitWriter(path, settings, batch_size=1)
    append(writer, settings, arrays, range(2))
    writer.close()
  assert check_output(str(folder), settings, 1) is None
  write(folder, settings, arrays, tokens)
  assert files_of(folder) == files_of(written["top-k"])


def test_a_finished_folder_is_recognised(written):
  assert check_output(str(written["draws"]), settings_of("draws"), 1) == read_meta(written["draws"])


def test_one_writer_at_a_time(tmp_path, refusal):
  folder = str(tmp_path / "logits")

  def second():
    with locked(folder):
      pass

  with locked(folder):
    assert "another process is writing there" in refusal(second)


def test_another_output_is_refused(tmp_path, written, refusal):
  said = refusal(check_output, str(written["top-k"]), settings_of("top-k", count=6), 1)
  assert "count was 5, is 6" in said
  with locked(str(tmp_path / "begun")) as path:
    writer = LogitWriter(path, settings_of("top-k"), batch_size=1)
    writer._commit()
    writer.close()
  said = refusal(check_output, str(tmp_path / "begun"), settings_of("top-k"), 2)
  assert "batch_size was 1, is 2" in said
  (tmp_path / "begun" / "journal.json").write_text("[]")
  assert "journal.json is damaged" in refusal(
    check_output, str(tmp_path / "begun"), settings_of("top-k"), 1
  )
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "notes.txt").write_text("mine")
  assert "holds 'notes.txt'" in refusal(
    check_output, str(tmp_path / "other"), settings_of("top-k"), 1
  )
  for name, says in (("gs://bucket/x", "is a URL"), ("", "empty name")):
    assert says in refusal(check_output, name, settings_of("top-k"), 1)


@pytest.fixture
def copy(tmp_path, written):
  """A copy of the likeliest words, to damage."""
  folder = tmp_path / "copy"
  folder.mkdir()
  for name, content in files_of(written["top-k"]).items():
    (folder / name).write_bytes(content)
  return folder


def test_damaged_files_are_refused(copy, tokens, refusal):
  name = "log_probabilities.float16"
  content = bytearray((copy / name).read_bytes())
  content[40] ^= 1
  (copy / name).write_bytes(content)
  assert f"{name} is missing or damaged" in refusal(opened, copy, tokens)
  (copy / name).unlink()
  assert f"{name} is missing or damaged" in refusal(opened, copy, tokens)


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"version": 9}, "is of version 9, not 1"),
    ({"tokens": 7}, "meta.json is damaged"),
    ({"settings": {}}, "meta.json is damaged"),
  ],
)
def test_a_damaged_meta_is_refused(copy, refusal, change, says):
  meta = {**json.loads((copy / META).read_text()), **change}
  (copy / META).write_text(json.dumps(meta))
  assert says in refusal(read_meta, copy)
  (copy / META).write_text("{")
  assert "cannot be read as JSON" in refusal(read_meta, copy)


def test_other_rows_lengths_and_vocabulary_are_refused(written, tokens, refusal, small_vocabulary):
  folder = written["top-k"]
  meta, bytes_vocabulary = read_meta(folder), load_vocabulary("bytes")
  other = types.SimpleNamespace(**{**vars(tokens), "fingerprint": "others"})
  assert "for other rows" in refusal(LogitStore, folder, meta, other, bytes_vocabulary, DATA)
  longer = dataclasses.replace(DATA, feature_lengths={"inputs": 20, "targets": 32})
  said = refusal(LogitStore, folder, meta, tokens, bytes_vocabulary, longer)
  assert "--max-output-tokens 16, not 20 and 32" in said
  said = refusal(LogitStore, folder, meta, tokens, small_vocabulary, DATA)
  assert "for the vocabulary bytes" in said


def config_of(make_config, kind, **response):
  loss = LossConfig(extra_terms={kind: 1.0}, response=ResponseConfig(**response))
  return dataclasses.replace(make_config(), loss=loss, signals=SignalConfig(logits="logits"))


@pytest.mark.parametrize(
  ("mode", "kind", "response", "says"),
  [
    ("top-k", "response", {"temperature": 2.0}, "temperature = 2, but"),
    ("sorted", "response", {}, "give --kind universal"),
    ("draws", "universal", {}, "--top-k"),
    ("draws", "response", {"divergence": "reverse"}, "set 'forward'"),
  ],
)
def test_kinds_that_cannot_be_trained_from_it(
  make_config, written, refusal, mode, kind, response, says
):
  config = config_of(make_config, kind, **response)
  assert says in refusal(check_run, read_meta(written[mode]), config)


def test_kinds_that_can(make_config, written):
  for mode, kind in (("top-k", "response"), ("draws", "response"), ("sorted", "universal"),
                     ("top-k", "universal")):  # fmt: skip
    check_run(read_meta(written[mode]), config_of(make_config, kind))


def test_a_student_with_fewer_words_is_refused(make_config, written, refusal):
  meta = read_meta(written["top-k"])
  small = make_config(model={"vocab_size": WORDS - 1})
  assert "T5Config.vocab_size = 39" in refusal(check_model, meta, small)
  check_model(meta, make_config(model={"vocab_size": WORDS}))


def test_non_finite_numbers_are_refused():
  ids = np.zeros((1, COUNT), int)
  with pytest.raises(ValueError, match="non-finite"):
    settings_of("top-k").encoded((ids, np.full((1, COUNT), np.nan)))
  encoded = settings_of("top-k").encoded((ids, np.full((1, COUNT), -1e6)))
  assert np.all(np.isfinite(encoded["log_probabilities"]))


def test_ids_take_two_bytes_where_they_can():
  assert settings_of("top-k", words=2**16).file_of("ids") == "ids.uint16"
  assert settings_of("top-k", words=2**16 + 1).file_of("ids") == "ids.uint32"
