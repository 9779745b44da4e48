"""Mistakes in `dss plan`, on a machine without the compiler: one sentence, exit code 2."""

import importlib.util
import sys

import pytest

from dss_jax.cli import main as cli


@pytest.fixture
def dss(monkeypatch, capsys):
  """Returns a function that runs `dss` without libtpu: (exit code, output, errors)."""
  find_spec = importlib.util.find_spec

  def without_libtpu(name, *rest):
    return None if name == "libtpu" else find_spec(name, *rest)

  monkeypatch.setattr(importlib.util, "find_spec", without_libtpu)

  def dss(*arguments):
    monkeypatch.setattr(sys, "argv", ["dss", *arguments])
    with pytest.raises(SystemExit) as ended:
      cli.main()
    return ended.value.code, *capsys.readouterr()

  return dss


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ([], ["libtpu", "pip install 'dss-jax[tpu]'"]),
    (["--mesh", "v5e-16", "--student", "large"], ["libtpu", "pip install 'dss-jax[tpu]'"]),
    (["--mesh", "gpu-8"], ["--mesh gpu-8", "not a TPU slice", "v3-64"]),
    (["--mesh", "data=8,model=8"], ["not a TPU slice", "v3-64"]),
    (["--mesh", "v3-63"], ["--mesh v3-63", "v3-64"]),
    (["--mesh", "v9-64"], ["--mesh v9-64", "v3-64"]),
    (["--student", "giant"], ["--student", "'giant'", "xxl"]),
    (["--batch-size", "0"], ["--batch-size", "RunConfig.batch_size = 0", "at least 1"]),
    (["--input-tokens", "many"], ["--input-tokens", "'many'"]),
    (["--gin", "TRAIN_STEP=5"], ["--gin TRAIN_STEP=5", "TRAIN_STEPS"]),
    (["--gin", "T5Config.remat='some'"], ["T5Config.remat", "'some'", "full"]),
  ],
)
def test_a_mistake_is_one_sentence(dss, arguments, words):
  code, out, err = dss("plan", *arguments)
  assert (code, out) == (2, "")
  assert err.startswith("dss: ")
  assert err.count("\n") == 1
  assert all(word in err for word in words), err


def test_a_tpu_mesh_is_refused_without_tpus(dss, tmp_path):
  data = tmp_path / "train.jsonl"
  data.write_text('{"input_text": "a", "output_text": "b", "rationale": "c"}\n')
  model_dir = tmp_path / "model"
  flags = ["--student", "tiny", "--dataset", str(data), "--model-dir", str(model_dir)]
  code, out, err = dss("distill", "--mesh", "v3-64", *flags)
  assert (code, out) == (2, "")
  assert all(word in err for word in ("--mesh data=8,model=8", "TPU", "CPU", "data=N,model=M")), err
  assert err.count("\n") == 1
  assert not model_dir.exists()
