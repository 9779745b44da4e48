"""A trained student in other programs' formats, and back."""

import io
import json
import pathlib
import shutil
import sys

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import sentencepiece
from flax import linen as nn

from dss_jax.checkpoints.arrays import BFLOAT16, in_memory
from dss_jax.cli import main as cli
from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import LABEL, RATIONALE, RunConfig
from dss_jax.data.pipeline import prepare
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.errors import UserError
from dss_jax.model.t5 import init_params
from dss_jax.student import model_dir as students
from dss_jax.student.export import best_weights, export_student
from dss_jax.student.hf_folder import write_tokenizer
from dss_jax.student.open_checkpoint import open_checkpoint
from dss_jax.student.student import Student
from dss_jax.train.checkpointing import Checkpoints
from dss_jax.train.step import TrainState

KEY = jax.random.key(0)
FORMATS = ["t5x", "t5x-orbax", "hf"]


def dss(*arguments):
  """Runs the command in this process; exit code and what it printed."""
  with pytest.MonkeyPatch.context() as patch:
    out, err = io.StringIO(), io.StringIO()
    patch.setattr(sys, "argv", ["dss", *map(str, arguments)])
    patch.setattr(sys, "stdout", out)
    patch.setattr(sys, "stderr", err)
    try:
      cli.main()
      code = 0
    except SystemExit as error:
      code = error.code
  return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A student of two steps, drawn instead of trained; the first one evaluated best."""
  folder = tmp_path_factory.mktemp("student")
  row = {"input_text": "Add 2.", "output_text": "three", "rationale": "One more."}
  (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
  settings = [
    Binding("MODEL_DIR", str(folder / "model"), "test"),
    Binding("DATASET", str(folder / "train.jsonl"), "test"),
    Binding("VOCABULARY", "bytes", "test"),
  ]
  config = load_config(RunConfig, ["runs/distill.gin", "models/tiny.gin"], settings)
  data = prepare(config.data, (LABEL, RATIONALE))
  config = students.with_vocab_size(config, data.vocabulary)
  with students.locked(config) as directory:
    card = students.begin(config, data)
    generator = np.random.default_rng(0)
    params = nn.meta.unbox(jax.eval_shape(lambda key: init_params(config.model, key), KEY))
    checkpoints = Checkpoints(directory / students.CHECKPOINTS, keep_best=True)
    for step, accuracy in ((1, 0.9), (2, 0.1)):
      drawn = jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape)), params)
      state = TrainState(step=jnp.asarray(step), params=drawn, opt_state={})
      checkpoints.save(state, step, {}, {"accuracy": accuracy, "loss": 1.0})
    checkpoints.wait()
    checkpoints.close()
    students.write_card(directory, {**card, "finished": True, "steps": 2, "best_step": 1})
  return directory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMATS)
def test_there_and_back(model, tmp_path, form, dtype, assert_same):
  student = Student.open(model)
  step, weights = best_weights(student)
  written = export_student(model, tmp_path / "out", form, dtype=dtype)
  assert written["step"] == step
  assert written["weights"] == sum(array.size for array in weights.values()) > 10_000
  back = open_checkpoint(written["output"])
  kind = np.dtype(np.float32) if dtype == "float32" else BFLOAT16
  cast = {name: in_memory(array.whole().astype(kind)) for name, array in weights.items()}
  assert_same(back.arrays, cast)
  assert back.model.emb_dim == student.config.model.emb_dim
  # Nothing of the work in between is left.
  assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_weights_are_those_that_orbax_restores(model):
  step, weights = best_weights(Student.open(model))
  restored = ocp.PyTreeCheckpointer().restore(model / "checkpoints" / str(step) / "params")
  kernel = restored["decoder"]["layers_1"]["mlp"]["wo"]["kernel"]
  np.testing.assert_array_equal(weights["decoder.layers_1.mlp.wo.kernel"].whole(), kernel)


def test_the_best_step_is_handed_on_not_the_last(model, tmp_path):
  copy = tmp_path / "model"
  shutil.copytree(model, copy)
  assert {path.name for path in (copy / "checkpoints").glob("[0-9]*")} == {"1", "2"}
  assert best_weights(Student.open(copy))[0] == 1


def test_a_hugging_face_folder_is_whole(model, tmp_path):
  export_student(model, tmp_path / "hf", "hf", dtype="bfloat16")
  folder = tmp_path / "hf"
  config = json.loads((folder / "config.json").read_text())
  assert config["architectures"] == ["T5ForConditionalGeneration"]
  assert (config["d_model"], config["num_heads"], config["d_kv"]) == (8, 4, 3)
  assert config["feed_forward_proj"] == "gated-gelu"
  assert config["tie_word_embeddings"] is False
  generation = json.loads((folder / "generation_config.json").read_text())
  longest = Student.open(model).card["longest_target_tokens"]["label"]
  assert generation["max_new_tokens"] == longest
  assert generation["decoder_start_token_id"] == 0
  tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
  assert tokenizer["tokenizer_class"] == "ByT5Tokenizer"
  assert tokenizer["extra_ids"] == len(tokenizer["additional_special_tokens"]) == 125
  card = (folder / "README.md").read_text()
  assert card.startswith("---\n")
  assert "predict: " in card
  assert "bfloat16" in card
  # Where it was trained is nobody's business.
  assert str(model.parent) not in card


def test_a_sentencepiece_model_is_handed_on_as_it_is(shared, tmp_path):
  path = shared / "data/vocab/t5_spiece.model"
  write_tokenizer(load_vocabulary(path), tmp_path)
  assert (tmp_path / "spiece.model").read_bytes() == path.read_bytes()
  settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert settings["tokenizer_class"] == "T5Tokenizer"
  assert settings["extra_ids"] == 100
  assert settings["additional_special_tokens"][99] == "<extra_id_99>"
  processor = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
  pieces = [settings["pad_token"], settings["eos_token"], settings["unk_token"]]
  assert [processor.IdToPiece(i) for i in range(3)] == pieces


@pytest.mark.parametrize("form", FORMATS)
def test_the_command_says_what_it_wrote(model, tmp_path, form):
  code, out, err = dss("export", "--model", model, "--format", form, "--output", tmp_path / "out")
  assert (code, err) == (0, "")
  written = json.loads(out)
  assert written["format"] == form
  assert pathlib.Path(written["output"]).is_dir()
  code, out, err = dss("export", "--model", model, "--format", form, "--output", tmp_path / "out")
  assert (code, out) == (2, "")
  assert "holds" in err
  assert len(err.splitlines()) == 1


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_to_a_url_is_the_local_one(model, tmp_path, form):
  local = tmp_path / "out"
  url = f"memory:/{tmp_path}/out"
  written = export_student(model, local, form)
  assert export_student(model, url, form) == {
    **written,
    "output": written["output"].replace(str(local), url),
  }
  ours = {str(path.relative_to(local)): path for path in local.rglob("*") if path.is_file()}
  system, root = fsspec.core.url_to_fs(url)
  theirs = {path.removeprefix(f"{root}/"): path for path in system.find(root)}
  # OCDBT gives its data files random names, and _CHECKPOINT_METADATA has the time.
  fixed = {name for name in ours if "/d/" not in name and not name.endswith("_METADATA")}
  assert fixed == {name for name in theirs if name in fixed}
  assert len(ours) == len(theirs)
  if form != "t5x-orbax":
    for name in fixed:
      assert system.cat_file(theirs[name]) == ours[name].read_bytes()
  refused = refusal(model, url, form)
  assert refused.startswith(f"--output {url}: ")
  assert "already" in refused


def refusal(*arguments, **options):
  with pytest.raises(UserError) as caught:
    export_student(*arguments, **options)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_where_it_cannot_go(model, tmp_path):
  (tmp_path / "file").write_text("")
  assert "is a file" in refusal(model, tmp_path / "file", "t5x")
  assert "cannot be written" in refusal(model, tmp_path / "file/below", "t5x")
  assert "`pip install s3fs`" in refusal(model, "s3://bucket/out", "hf")
  assert "is an empty name" in refusal(model, "", "hf")
  assert [path.name for path in tmp_path.iterdir()] == ["file"]
  (tmp_path / "empty").mkdir()
  export_student(model, tmp_path / "empty", "t5x")
  assert list((tmp_path / "empty").iterdir())


def test_what_cannot_be_exported(model, tmp_path):
  assert "is no student" in refusal(tmp_path, tmp_path / "out", "hf")
  copy = tmp_path / "copy"
  shutil.copytree(model, copy)
  shutil.rmtree(copy / "checkpoints")
  assert "has no checkpoint yet" in refusal(copy, tmp_path / "out", "hf")
  assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_leaves_no_folder(model, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(model, copy)
  step = best_weights(Student.open(copy))[0]
  for path in (copy / "checkpoints" / str(step) / "params").rglob("d/*"):
    path.write_bytes(path.read_bytes()[:-40])
  assert "params" in refusal(copy, tmp_path / "out", "t5x")
  assert [path.name for path in tmp_path.iterdir()] == ["copy"]
