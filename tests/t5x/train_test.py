"""`python -m t5x.train` with our gin files, as a user runs it, and what comes of it."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from dss_jax.student.open_checkpoint import open_checkpoint

WHY = "T5X is not installed (docs/t5x.md)"
pytestmark = pytest.mark.t5x
pytest.importorskip("t5x.models", reason=WHY, exc_type=ImportError)


@pytest.fixture(scope="module")
def train(data_config, request):
  """Runs T5X's trainer on the rows; its log."""

  def train(model_dir, steps, **settings):
    named = {
      "MODEL_DIR": repr(str(model_dir)),
      "DATASET": repr(data_config.dataset),
      "EVAL_DATASET": repr(data_config.eval_dataset),
      "VOCABULARY_FILE": "'bytes'",
      "TASK_FEATURE_LENGTHS": repr(dict(data_config.feature_lengths)),
      "BATCH_SIZE": 8,
      "EVAL_PERIOD": 2,
      "TRAIN_STEPS": steps,
      "network.T5Config.vocab_size": 384,
      "network.T5Config.dtype": "'float32'",
      **settings,
    }
    flags = [f"--gin.{name}={value}" for name, value in named.items()]
    files = [f"--gin_file=gin_configs/t5x/{name}.gin" for name in ("distill", "tiny")]
    result = subprocess.run(
      [sys.executable, "-m", "t5x.train", *files, *flags],
      cwd=request.config.rootpath,
      capture_output=True,
      text=True,
      env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stderr

  return train


def losses_of(log, name):
  """{step: the value that the log has}."""
  found = re.findall(rf"\[(\d+)\] collection=.*[ ,]{name}=([\d.]+)", log)
  return {int(step): float(value) for step, value in found}


def test_a_run_that_stops_goes_on_as_if_it_had_not(train, tmp_path):
  """Microbatches and T5X's own decoding on the way; the checkpoints are read back."""
  inference = {"INFERENCE_EVALUATION": "@infer_eval/utils.DatasetConfig()"}
  whole = train(tmp_path / "whole", 4, **inference)
  assert losses_of(whole, "train_total_loss").keys() == {2, 4}
  assert losses_of(whole, "eval_total_loss").keys() == {2, 4}
  judged = tmp_path / "whole/inference_eval"
  assert [path.name for path in judged.glob("*-metrics.jsonl")] == ["eval_predict-metrics.jsonl"]
  parted = train(tmp_path / "parted", 2)
  parted += train(tmp_path / "parted", 4)
  for name in ("train_total_loss", "eval_total_loss", "label/train_loss"):
    want, got = losses_of(whole, name), losses_of(parted, name)
    assert want.keys() == got.keys()
    np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-5)
  arrays = [
    open_checkpoint(str(tmp_path / name / "checkpoint_4")).arrays for name in ("whole", "parted")
  ]
  assert len(arrays[0]) == len(arrays[1]) > 40
  for name, array in arrays[0].items():
    np.testing.assert_allclose(arrays[1][name].whole(), array.whole(), rtol=1e-4, atol=1e-6)
