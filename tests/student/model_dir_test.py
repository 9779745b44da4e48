"""The lock of MODEL_DIR."""

import pytest

from dss_jax.errors import UserError
from dss_jax.student.model_dir import check_nonce, locked, write_nonce


def test_a_second_run_is_refused_and_leaves_the_first_one_s_nonce(make_config, tmp_path):
  config = make_config(tmp_path / "model")
  with locked(config) as path:
    nonce = write_nonce(path)
    refusal = r"--model-dir .*model: another run is writing there"
    with pytest.raises(UserError, match=refusal), locked(config):
      raise AssertionError
    check_nonce(path, nonce)
  with locked(config):
    pass
