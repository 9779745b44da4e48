"""The teacher on disk is told from others of its size by its weights."""

import numpy as np
import pytest

from dss_jax.checkpoints.arrays import in_memory, model_shapes
from dss_jax.checkpoints.hf_write import write_hf
from dss_jax.config.schema import (
  DataConfig,
  RunConfig,
  SignalConfig,
  T5Config,
)
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.student.teacher_model import TeacherModel

BYTES = load_vocabulary("bytes")
MODEL = T5Config(
  emb_dim=8,
  num_heads=2,
  head_dim=4,
  mlp_dim=8,
  num_encoder_layers=1,
  num_decoder_layers=1,
  vocab_size=384,
)


def digest(folder, seed=0, changed=None):
  generator = np.random.default_rng(seed)
  arrays = {
    name: generator.normal(size=shape).astype(np.float32)
    for name, shape in model_shapes(MODEL).items()
  }
  if changed is not None:
    arrays[changed].flat[0] += 1
  folder.mkdir()
  stored = {name: in_memory(array) for name, array in arrays.items()}
  write_hf(stored, MODEL, folder, dtype=np.dtype(np.float32), eos_id=1, max_new_tokens=8)
  run = RunConfig(
    model_dir="unused",
    student="tiny",
    model=MODEL,
    data=DataConfig(vocabulary="bytes"),
    signals=SignalConfig(model=str(folder)),
  )
  return TeacherModel(run, BYTES).digest


def test_the_same_weights_have_the_same_digest(tmp_path):
  assert digest(tmp_path / "one") == digest(tmp_path / "two")


@pytest.mark.parametrize(
  "changed",
  ["decoder.decoder_norm.scale", "encoder.relpos_bias.rel_embedding"],
)
def test_other_weights_of_the_same_shapes_have_another_digest(tmp_path, changed):
  assert digest(tmp_path / "one") != digest(tmp_path / "two", changed=changed)
