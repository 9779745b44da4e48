"""The gin files for T5X's trainer: short, opening with their command, each size the student's."""

import os
import re
import sys

import pytest

from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import RunConfig, shipped_folder

WHY = "T5X is not installed (docs/t5x.md)"
GIN = shipped_folder("gin_configs")
FILES = sorted((GIN / "t5x").glob("*.gin"))
PARTS = {"distill", "datasets", "step_by_step"}
SIZES = sorted({path.stem for path in FILES} - PARTS)
NEEDED = ["MODEL_DIR='x'", "DATASET='y'"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestFile:
  def test_opens_with_the_command_that_runs_it(self, path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    opening = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    command = "\n".join(opening).partition("python -m t5x.train ")[2]
    files = re.findall(r"--gin_file=(\S+)", command)
    assert files[0] == "gin_configs/t5x/distill.gin"
    assert len(files) == 2
    assert all((GIN.parent / name).is_file() for name in files)
    macros = "".join(some.read_text(encoding="utf-8") for some in FILES)
    for name in re.findall(r"--gin\.(\w+)=", command):
      assert name == "MODEL_DIR" or re.search(rf"^{name} = ", macros, re.MULTILINE), name


def test_there_is_a_file_for_every_size():
  assert {"tiny", "mini", "small", "base", "large", "xl", "xxl"} == set(SIZES)


@pytest.fixture
def parsed(monkeypatch):
  """Has T5X read distill.gin, a size's file and bindings, as its command line does."""
  pytest.importorskip("t5x.models", reason=WHY, exc_type=ImportError)
  import gin
  import t5x
  from t5x import gin_utils
  from t5x.train import train

  monkeypatch.setattr(sys.modules["__main__"], "train", train, raising=False)
  folders = [str(GIN.parent), os.path.dirname(os.path.dirname(t5x.__file__))]

  def parsed(size, *bindings):
    gin.clear_config()
    files = [str(GIN / f"t5x/{name}.gin") for name in ("distill", size)]
    gin_utils.parse_gin_flags(folders, files, [*NEEDED, *bindings])
    return gin

  yield parsed
  gin.clear_config()


@pytest.mark.t5x
@pytest.mark.parametrize("size", SIZES)
def test_a_size_is_the_students_of_that_name(parsed, size):
  gin = parsed(size)
  theirs = gin.get_configurable("network.T5Config")()
  files = ["runs/distill.gin", f"models/{size}.gin"]
  ours = load_config(RunConfig, files, [Binding("MODEL_DIR", "x", "test")])
  for name in ("emb_dim", "num_heads", "head_dim", "mlp_dim", "num_encoder_layers"):
    assert getattr(theirs, name) == getattr(ours.model, name), name
  assert theirs.num_decoder_layers == ours.model.num_decoder_layers
  assert theirs.mlp_activations == ours.model.mlp_activations
  assert theirs.logits_via_embedding == ours.model.logits_via_embedding
  assert theirs.dropout_rate == ours.model.dropout_rate
  assert gin.query_parameter("%BATCH_SIZE") == ours.batch_size
  steps = gin.query_parameter("%TRAIN_STEPS")
  if size in ("tiny", "mini"):
    assert gin.query_parameter("%INITIAL_CHECKPOINT_PATH") is None
  else:
    address = gin.query_parameter("%INITIAL_CHECKPOINT_PATH")
    steps -= int(address.rpartition("_")[2])
    assert f"t5_1_1_{size}/" in address
  assert steps == ours.train_steps


@pytest.mark.t5x
@pytest.mark.parametrize(
  "binding",
  [
    "EVALUATION=None",
    "INFERENCE_EVALUATION=@infer_eval/utils.DatasetConfig()",
    "WEIGHTS_ONLY=True",
    "PACK=True",
    "partitioning.PjitPartitioner.num_partitions=8",
    "model.StepByStepTrainer.num_microbatches=4",
  ],
)
def test_what_the_docs_name_can_be_set(parsed, binding):
  name = binding.partition("=")[0]
  gin = parsed("tiny", binding)
  assert gin.query_parameter(name if "." in name else f"%{name}") != "unset"
